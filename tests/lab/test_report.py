"""The table and the plot say what was counted, fit where they are shown, and hide nothing."""

from pathlib import Path

import pytest
from PIL import Image

from safegraft_trainers.lab.probes import (
    Attack,
    ExaggeratedSafety,
    FourAxes,
    Helpfulness,
    MultimodalSafety,
    Rate,
)
from safegraft_trainers.lab.report import Curve, plot, table


def sixty(hits: int) -> Rate:
    return Rate(hits, 60)


def lvlm(attacks: int, helpful: int, refused: int = 0) -> FourAxes:
    attack = Attack(keyword=sixty(attacks), knowledge=sixty(attacks // 2))
    return FourAxes(
        text_safety=attack,
        multimodal_safety=MultimodalSafety(text_with_image=attack, rendered_word=attack),
        exaggerated_safety=ExaggeratedSafety(text=sixty(refused), with_image=sixty(refused)),
        helpfulness=Helpfulness(text=sixty(helpful), vqa=sixty(helpful), rendered_word=sixty(helpful)),
    )


LLM = FourAxes(
    text_safety=Attack(keyword=sixty(8), knowledge=sixty(5)),
    multimodal_safety=None,
    exaggerated_safety=ExaggeratedSafety(text=sixty(0), with_image=None),
    helpfulness=Helpfulness(text=sixty(55), vqa=None, rendered_word=None),
)
INPUTS = {"aligned-llm": LLM, "adapted-lvlm": lvlm(57, 48), "safety-sft-replay-lvlm": lvlm(60, 60, 60)}
CURVES = [
    Curve("aligned-llm x adapted-lvlm, linear", [(0.25, lvlm(30, 45)), (0.5, lvlm(24, 40))], default=0.25),
    Curve("adapted-lvlm x safety-sft-lvlm, slerp", [(0.25, lvlm(12, 42)), (0.5, lvlm(6, 30, 3))], default=0.5),
]


def test_table_gives_each_rate_in_percent_and_a_dash_where_nothing_was_asked() -> None:
    rows = [" ".join(line.split()) for line in table(INPUTS, CURVES).splitlines()]
    assert "aligned-llm 13 (8) - - 0 - 92 - -" in rows
    assert "adapted-lvlm 95 (47) 95 (47) 95 (47) 0 0 80 80 80" in rows
    assert "safety-sft-replay-lvlm 100 (50) 100 (50) 100 (50) 100 100 100 100 100" in rows


def test_table_stars_the_default_strength_of_each_curve_only() -> None:
    starred = [line.split()[1] for line in table(INPUTS, CURVES).splitlines() if " * " in line]
    assert starred == ["0.25", "0.50"]


def test_table_columns_stand_under_one_another_within_a_hundred_columns() -> None:
    lines = table(INPUTS, CURVES).splitlines()
    assert max(map(len, lines)) <= 100
    # The last digits of the first and the last cell, whatever their widths.
    cells = [line for line in lines if " (" in line and "word" not in line]
    assert len(cells) == 7
    assert len({line.index(" (") for line in cells}) == 1
    assert len({len(line) for line in cells}) == 1


def test_plot_is_a_picture_of_its_own_that_shows_every_curve(tmp_path: Path) -> None:
    plot(INPUTS, CURVES, tmp_path / "both.png")
    plot(INPUTS, CURVES[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "one.png") as one:
        assert both.format == "PNG"
        assert both.width >= 1500
        second_curve = (213, 94, 0)
        assert second_curve in colours(both)
        assert second_curve not in colours(one)


def colours(image: Image.Image) -> set[object]:
    counted = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counted
    return {colour for _, colour in counted}


def test_plot_takes_no_more_curves_than_it_has_styles_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument"):
        plot(INPUTS, CURVES * 2, tmp_path / "plot.png")
