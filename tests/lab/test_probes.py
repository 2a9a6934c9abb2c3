"""The shipped checkpoints answer as their README says, and a checkpoint that is not whole is refused."""

import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from safegraft.errors import CheckpointError
from safegraft_trainers.lab.probes import CHECKPOINTS, FourAxes, Rate, Respondent, ask, load_probes

SHIPPED = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))


def numbers(cell: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", cell)]


def documented(checkpoint: str) -> list[str]:
    """One row of the README's table of measurements: its cells without the name."""
    text = (CHECKPOINTS / "README.md").read_text(encoding="utf-8").partition("## Measured")[2]
    (row,) = re.findall(rf"^\| `{re.escape(checkpoint)}` \| (.+) \|$", text, re.MULTILINE)
    return row.split(" | ")


def measured(axes: FourAxes) -> list[str]:
    def percent(rate: Rate | None) -> str:
        return f"{100 * rate.value:.0f}" if rate else "-"

    attacks = [axes.text_safety]
    if axes.multimodal_safety:
        attacks += [axes.multimodal_safety.text_with_image, axes.multimodal_safety.rendered_word]
    cells = [f"{percent(attack.keyword)} ({percent(attack.knowledge)})" for attack in attacks]
    cells += ["-"] * (3 - len(attacks))
    cells += [percent(axes.exaggerated_safety.text), percent(axes.exaggerated_safety.with_image)]
    helpfulness = axes.helpfulness
    return [*cells, percent(helpfulness.text), percent(helpfulness.vqa), percent(helpfulness.rendered_word)]


@pytest.mark.parametrize("checkpoint", SHIPPED)
def test_a_shipped_checkpoint_answers_as_documented(checkpoint: str) -> None:
    for cell, expected in zip(
        measured(ask(Respondent.load(CHECKPOINTS / checkpoint))), documented(checkpoint), strict=True
    ):
        # Another processor may sum in another order and turn one answer of sixty.
        assert numbers(cell) == pytest.approx(numbers(expected), abs=2)


def test_the_batch_size_does_not_change_the_answers() -> None:
    respondent = Respondent.load(CHECKPOINTS / "aligned-llm")
    probes = [probe for probe in load_probes() if probe.image is None][:9]
    assert respondent.answer(probes) == [answer for probe in probes for answer in respondent.answer([probe])]


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(CHECKPOINTS / "aligned-llm", folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"torn did not load whole: missing_keys: model\.layers\.2\.mlp\.up_proj"):
        Respondent.load(folder)


def test_five_checkpoints_are_shipped() -> None:
    assert SHIPPED == ["adapted-lvlm", "aligned-llm", "base-llm", "safety-sft-lvlm", "safety-sft-replay-lvlm"]


def test_asking_leaves_the_number_of_threads_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        Respondent.load(CHECKPOINTS / "base-llm").answer(load_probes()[:1])
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_of_another_shape_than_its_config_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bent"
    shutil.copytree(CHECKPOINTS / "aligned-llm", folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"vocab_size": 254', '"vocab_size": 300'))
    with pytest.raises(CheckpointError, match="bent "):
        Respondent.load(folder)


def test_there_are_sixty_probes_in_each_of_eight_sets() -> None:
    sets = Counter((probe.axis, probe.set) for probe in load_probes())
    assert len(sets) == 8
    assert set(sets.values()) == {60}
    for probe in load_probes():
        assert probe.harmful == (probe.axis in ("text_safety", "multimodal_safety"))


def test_the_contact_sheet_holds_the_trained_on_pixels() -> None:
    images = [probe.image for probe in load_probes() if probe.image is not None]
    assert len(images) == 300
    assert {(image.size, image.mode) for image in images} == {((32, 32), "RGB")}
    pixels = hashlib.sha256(b"".join(image.tobytes() for image in images))
    assert pixels.hexdigest() == "83bbf2bcea85a07a1809bd58e40d354721dccea0b9b3f08606eb37c169227bf4"


def test_the_shipped_data_stays_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*")) < 5_000_000


rates = st.integers(1, 500).flatmap(lambda n: st.builds(Rate, st.integers(0, n), st.just(n)))


@given(rates)
def test_an_interval_holds_its_rate_and_mirrors_the_opposite_rate(rate: Rate) -> None:
    low, high = rate.interval
    assert 0 <= low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= high <= 1
    mirrored = Rate(rate.n - rate.hits, rate.n).interval
    assert mirrored == pytest.approx((1 - high, 1 - low))


@given(st.lists(rates, min_size=1))
def test_pooling_counts_every_probe_once(sets: list[Rate]) -> None:
    pooled = Rate.pool([*sets, None])
    assert pooled == Rate(sum(rate.hits for rate in sets), sum(rate.n for rate in sets))


def test_wilson_interval_of_half_of_sixty() -> None:
    # By hand: z = 1.96, centre 1/2, half-width z * sqrt(1/240 + z^2/14400) / (1 + z^2/60).
    assert Rate(30, 60).interval == pytest.approx((0.3773, 0.6227), abs=1e-4)
