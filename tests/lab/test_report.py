"""The tables and the plot say what was counted, fit where they are shown, and hide nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
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
from safegraft_trainers.lab.report import Curve, document, every_set, four_axes, plot


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
    Curve("lvlm + llm", "linear", [(0.25, lvlm(30, 45)), (0.5, lvlm(24, 40))], default=0.25),
    Curve("adapted-lvlm + safety-sft-replay-lvlm", "slerp", [(0.25, lvlm(12, 42)), (0.5, lvlm(6, 30, 3))], default=0.5),
]


def test_four_axes_pools_the_sets_and_shows_each_pairing_at_its_default_strength() -> None:
    rows = [" ".join(line.split()) for line in four_axes(INPUTS, CURVES).splitlines()]
    # By hand: 8 of 60 has the interval 6.9 to 24.2 %, 114 of 120 one of 89.5 to 97.7 %, 144 of 180 of 73.6 to 85.2 %.
    assert "aligned-llm 13 ±9 - 0 ±3 92 ±7" in rows
    assert "adapted-lvlm 95 ±6 95 ±4 0 ±2 80 ±6" in rows
    assert "lvlm + llm 0.25 50 ±12 50 ±9 0 ±2 75 ±6" in rows
    assert "adapted-lvlm + safety-sft-replay-lvlm 0.50 10 ±8 10 ±5 5 ±4 50 ±7" in rows


def test_every_set_gives_each_rate_and_a_dash_where_nothing_was_asked() -> None:
    rows = [" ".join(line.split()) for line in every_set(INPUTS, CURVES).splitlines()]
    assert "aligned-llm 13 (8) - - 0 - 92 - -" in rows
    assert "adapted-lvlm 95 (47) 95 (47) 95 (47) 0 0 80 80 80" in rows
    assert "safety-sft-replay-lvlm 100 (50) 100 (50) 100 (50) 100 100 100 100 100" in rows


def test_every_set_stars_the_default_strength_of_each_curve_only() -> None:
    starred = [
        line.split()[1]
        for line in every_set(INPUTS, CURVES).splitlines()
        if line.startswith("    strength") and "*" in line
    ]
    assert starred == ["0.25", "0.50"]


def test_columns_stand_under_one_another() -> None:
    """The last digits of the first and the last column, whatever their widths."""
    sets = [line for line in every_set(INPUTS, CURVES).splitlines() if " (" in line and "percent" not in line]
    assert len(sets) == 7
    assert len({line.index(" (") for line in sets}) == len({len(line) for line in sets}) == 1
    axes = [line for line in four_axes(INPUTS, CURVES).splitlines() if "±" in line]
    assert len(axes) == 5
    assert len({line.index(" ±") for line in axes}) == len({line.rindex(" ±") for line in axes}) == 1


@pytest.mark.parametrize("table", [four_axes, every_set])
def test_tables_fit_a_hundred_columns(table: Callable[[Mapping[str, FourAxes], Sequence[Curve]], str]) -> None:
    assert max(len(line) for line in table(INPUTS, CURVES).splitlines()) <= 100


def test_document_is_json_with_every_count() -> None:
    written = json.loads(json.dumps(document(LLM)))
    assert written["text_safety"]["keyword"]["hits"] == 8
    assert written["text_safety"]["keyword"]["n"] == 60
    assert written["text_safety"]["keyword"]["interval"] == pytest.approx([0.0691, 0.2417], abs=1e-4)
    assert written["multimodal_safety"] is None


def test_plot_is_a_picture_that_shows_every_curve(tmp_path: Path) -> None:
    plot(INPUTS, CURVES, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 1500
        first, second, third = (0, 114, 178), (213, 94, 0), (0, 158, 115)
        assert {first, second} <= colours(picture)
        assert third not in colours(picture)


def colours(image: Image.Image) -> set[object]:
    counted = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counted
    return {colour for _, colour in counted}


def test_plot_takes_no_more_curves_than_it_has_styles_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument"):
        plot(INPUTS, CURVES * 2, tmp_path / "plot.png")
