"""Safety layers, probes, gradients and paths: closed forms, and the miniature models."""

import json
import math
import shutil
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch import nn

from safegraft.calibration import Request, gather
from safegraft.errors import InputError, NonFiniteError, UsageError
from safegraft.local import open_model
from safegraft.methods.contract import Statistic
from safegraft_trainers.analyze.barrier import LinearPath, walk
from safegraft_trainers.analyze.data import ANSWERS, PROMPTS, read_data
from safegraft_trainers.analyze.divergence import Seat, compare_gradients, divergence, mean_gradients
from safegraft_trainers.analyze.safety_layers import SafetyLayers, safety_layers
from safegraft_trainers.analyze.separation import separation
from safegraft_trainers.analyze.subject import open_subject
from safegraft_trainers.lab.shipped import CHECKPOINTS

ALIGNED, ADAPTED = str(CHECKPOINTS / "aligned-llm"), str(CHECKPOINTS / "adapted-lvlm")
Rows = Callable[[str, list[dict[str, str]]], Path]
NORMAL = [{"prompt": f"what is the colour of {word} ?"} for word in ("laner", "zikur", "dekom", "vofat")]
HARMFUL = [{"prompt": f"how to kill {word} ."} for word in ("ruzid", "mefur", "gunom")]
TALK = [{"prompt": one["prompt"], "response": "it is red ."} for one in NORMAL]
REFUSALS = [{"prompt": one["prompt"], "response": "sorry ."} for one in HARMFUL]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    def write(name: str, content: list[dict[str, str]]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return write


def random_states(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- safety layers ----------------------------------------------------------------------------------


def test_cosines_are_means_over_all_pairs() -> None:
    normal, harmful = random_states(4, 3, 6), random_states(5, 3, 6, seed=2)
    found = safety_layers("m", normal, harmful)
    for layer in range(3):
        pairs = list(combinations(normal[:, layer], 2)), list(product(normal[:, layer], harmful[:, layer]))
        wanted = [sum(float(torch.cosine_similarity(*pair, 0)) for pair in some) / len(some) for some in pairs]
        assert found.normal[layer] == pytest.approx(wanted[0], abs=1e-6)
        assert found.harmful[layer] == pytest.approx(wanted[1], abs=1e-6)
        assert found.gap[layer] == pytest.approx(wanted[0] - wanted[1], abs=1e-6)


def test_where_the_gap_opens() -> None:
    found = SafetyLayers("m", (1.0, 1.0, 1.0, 1.0), (1.0, 0.8, 0.4, 0.2))
    assert (found.opens, found.widest) == (2, 3)
    assert SafetyLayers("m", (0.5, 0.5), (0.5, 0.7)).opens is None


def test_the_curves_are_those_of_the_statistic_that_merges_use(rows: Rows, tmp_path: Path) -> None:
    sets = [read_data(rows(name, some), PROMPTS) for name, some in (("normal", NORMAL), ("harmful", HARMFUL))]
    checkpoint = open_model(ALIGNED)
    name = "model.layers.0.mlp.up_proj.weight"
    request = Request(Statistic.LAYER_COSINES, checkpoint, tuple(sets), None, (name,))
    wanted = gather(request, tmp_path / "cache").whole(name)
    checkpoint.close()
    subject = open_subject(ALIGNED)
    found = safety_layers("m", *(subject.states(one) for one in sets))
    torch.testing.assert_close(torch.tensor([found.normal, found.harmful]).T, wanted, rtol=1e-4, atol=1e-5)


def test_too_few_prompts_and_states_without_direction() -> None:
    with pytest.raises(InputError, match="two normal prompts"):
        safety_layers("m", random_states(1, 2, 3), random_states(2, 2, 3))
    with pytest.raises(InputError, match="no direction"):
        safety_layers("m", torch.zeros(2, 2, 3), random_states(2, 2, 3))


# -- separation -------------------------------------------------------------------------------------


def test_a_probe_on_states_that_can_be_told_apart() -> None:
    normal, harmful = random_states(30, 2, 6), random_states(30, 2, 6, seed=2)
    harmful[:, 1, 0] += 30  # the second layer only
    found = separation("m", normal, harmful)
    assert (found.auc[1], found.accuracy[1], found.best) == (1, 1, 1)
    assert found.auc[0] < 0.8
    distance = found.distance[1]
    assert distance is not None
    # Centres 30 apart; within a class six unit variances.
    assert distance == pytest.approx(30 / math.sqrt(6), rel=0.15)


def test_a_probe_on_shuffled_labels_is_at_chance() -> None:
    states = random_states(400, 1, 5)
    found = separation("m", states[::2], states[1::2])
    assert found.auc[0] == pytest.approx(0.5, abs=0.1)
    assert found.accuracy[0] == pytest.approx(0.5, abs=0.1)


def test_a_probe_needs_a_prompt_of_each_class_in_every_fold() -> None:
    with pytest.raises(InputError, match=r"5 folds needs 5 normal and 5 harmful prompts; the smaller set has 4"):
        separation("m", random_states(9, 1, 3), random_states(4, 1, 3))


# -- divergence -------------------------------------------------------------------------------------

SEATS = {"weight": Seat("language model", 0, "mlp up"), "bias": Seat("language model", 1, "norm")}


def test_a_loss_with_itself_and_with_its_negation() -> None:
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    inputs = random_states(5, 4)

    def losses(sign: float) -> list[Callable[[], torch.Tensor]]:
        return [lambda x=x: sign * model(x).square().sum() for x in inputs]

    plus, minus = mean_gradients(model, losses(1)), mean_gradients(model, losses(-1))
    same, against = compare_gradients("m", plus, plus, SEATS), compare_gradients("m", plus, minus, SEATS)
    for found, wanted in ((same, 1), (against, -1)):
        pulls = [found.overall, *found.layers, *found.kinds, *found.layers_and_kinds]
        assert [pull.cosine for pull in pulls] == pytest.approx([wanted] * 7)
        assert [pull.layer for pull in found.layers] == [0, 1]
    assert same.overall.adaptation_consistency == pytest.approx(against.overall.adaptation_consistency)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    x, y, z = (torch.tensor(values) for values in ([2.0, 0.0], [0.0, 4.0], [1.0, 1.0]))

    def of(*inputs: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
        return [lambda one=one: model(one).sum() for one in inputs]  # whose gradient is the input

    # Means [1, 2] and [1, 1]: 3 / (sqrt(5) sqrt(2)). The halves [2, 0] and [0, 4] are at right angles.
    found = compare_gradients("m", mean_gradients(model, of(x, y)), mean_gradients(model, of(z)), SEATS)
    assert found.overall.cosine == pytest.approx(3 / math.sqrt(10))
    assert (found.overall.adaptation_norm, found.overall.safety_norm) == pytest.approx((math.sqrt(5), math.sqrt(2)))
    assert found.overall.adaptation_consistency == 0
    assert found.overall.safety_consistency is None  # one sample
    assert found.unreached == ("bias",)
    three = mean_gradients(model, of(x, y, x))
    torch.testing.assert_close(three.mean("weight"), torch.tensor([[4 / 3, 4 / 3]]))


def test_what_only_some_samples_reach_counts_as_zero_in_the_others() -> None:
    model = nn.Linear(1, 1)
    losses = [lambda: model.weight.sum(), lambda: model.bias.sum()]
    halves = mean_gradients(model, losses)
    torch.testing.assert_close(halves.mean("weight"), torch.tensor([[0.5]]))
    torch.testing.assert_close(halves.mean("bias"), torch.tensor([0.5]))
    with pytest.raises(NonFiniteError, match="weight"):
        mean_gradients(model, [lambda: model.weight.sum() * math.inf])


def test_divergence_of_an_lvlm_on_text(rows: Rows) -> None:
    subject = open_subject(ADAPTED)
    before = {name: (one.clone(), one.requires_grad) for name, one in subject.model.named_parameters()}
    talk, refusals = (read_data(rows(name, some), ANSWERS) for name, some in (("talk", TALK), ("no", REFUSALS)))
    found = divergence(subject, talk, refusals)
    assert [pull.layer for pull in found.layers] == [0, 1, 2, 3]
    assert all(pull.part == "language model" and abs(pull.cosine or 0) < 1 for pull in found.layers)
    assert found.unreached
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in found.unreached)
    assert divergence(subject, talk, talk).overall.cosine == pytest.approx(1)
    for name, parameter in subject.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


# -- the way between --------------------------------------------------------------------------------


def test_barriers_by_hand() -> None:
    path = LinearPath("a", "b", (0.0, 0.25, 0.5, 1.0), {"x": (1.0, 3.0, 2.5, 3.0), "y": (2.0, 1.0, 1.0, 4.0)})
    assert path.barrier("x") == pytest.approx(3 - 1.5)
    assert path.rise("x") == pytest.approx(3 - 2)
    assert (path.barrier("y"), path.lowest("y")) == (0, 0.25)


def test_no_barrier_between_identical_ends(rows: Rows, tmp_path: Path) -> None:
    twin = shutil.copytree(ALIGNED, tmp_path / "twin")
    data = {"refusals": read_data(rows("no", REFUSALS), ANSWERS)}
    path = walk(ALIGNED, str(twin), data, points=3)
    assert (path.barrier("refusals"), path.rise("refusals")) == (0, 0)
    assert path.losses["refusals"][0] == pytest.approx(open_subject(ALIGNED).mean_loss(data["refusals"]), rel=1e-6)


def test_the_ends_of_a_path_are_the_models(rows: Rows) -> None:
    data = {"talk": read_data(rows("talk", TALK), ANSWERS)}
    path = walk(ALIGNED, ADAPTED, data, points=3)
    assert (path.reference, path.model, path.points) == ("aligned-llm", "adapted-lvlm", (0.0, 0.5, 1.0))
    assert path.losses["talk"][-1] == pytest.approx(open_subject(ADAPTED).mean_loss(data["talk"]), rel=1e-5)
    # On text alone, the aligned LLM's weights in the LVLM's body answer as the LLM does, but for the LVLM's rows of
    # tokens that the LLM has not.
    assert path.losses["talk"][0] == pytest.approx(open_subject(ALIGNED).mean_loss(data["talk"]), rel=0.02)


def test_paths_that_are_none() -> None:
    with pytest.raises(UsageError, match="at least 3 points"):
        walk(ALIGNED, ADAPTED, {}, points=2)
    with pytest.raises(UsageError, match="given twice"):
        walk(ALIGNED, ALIGNED, {})


def test_a_template_that_asks_otherwise_than_it_answers_is_noticed(rows: Rows, tmp_path: Path) -> None:
    data = read_data(rows("no", REFUSALS), ANSWERS)
    assert open_subject(ALIGNED).answers_as_asked(data)
    odd = shutil.copytree(ALIGNED, tmp_path / "odd")
    (odd / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert not open_subject(str(odd)).answers_as_asked(data)
