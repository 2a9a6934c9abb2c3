"""Whole sweeps on the miniature checkpoints, and what happens when something goes wrong in one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from testhub import Hub, point_at

import safegraft
from safegraft.cli import main
from safegraft.errors import InputError, OutputError, RecipeError, UsageError
from safegraft.methods import Publisher
from safegraft.methods.registry import Registry
from safegraft_trainers.evaluate.example import Axis, Example, Scoring, Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.loading import Loaded
from safegraft_trainers.sweep import publishing
from safegraft_trainers.sweep.front import hypervolume
from safegraft_trainers.sweep.parts import OptunaSearch
from safegraft_trainers.sweep.result import State
from safegraft_trainers.sweep.run import sweep
from safegraft_trainers.sweep.search import Proposed, Told
from safegraft_trainers.sweep.spec import SweepSpec

Document = dict[str, Any]


def answers(evaluation: Evaluation | None) -> list[tuple[str, str | None]]:
    assert evaluation is not None
    return [(one.id, one.text) for one in evaluation.answers]


def test_from_the_file_to_the_winners(
    sweep_document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yml").write_text(yaml.safe_dump(sweep_document))
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "sweep.yml"), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "sweep.json").read_text())
    names = [f"{pairing}/linear@{strength}" for pairing in ("restore", "temper") for strength in ("0", "0.5")]
    assert [one["name"] for one in printed["candidates"]] == names
    by_name = {one["name"]: one for one in [*printed["candidates"], *printed["baselines"]]}

    # At strength 0 both are the adapted model, and so score as that baseline does, whatever the model answers.
    for name in ("restore/linear@0", "temper/linear@0"):
        assert by_name[name]["dev"] == by_name["adapted-lvlm"]["dev"]
    assert by_name["aligned-llm"]["dev"].keys().isdisjoint({"multimodal_safety"})  # it sees no pictures

    def losses(name: str, split: str) -> tuple[float, float]:
        scores = by_name[name][split]
        return scores["multimodal_safety"]["value"], 1 - scores["helpfulness"]["value"]

    front = printed["front"]
    assert front
    assert printed["best"] == front[0] == min(front, key=lambda name: losses(name, "dev"))
    assert all(by_name[name]["test"] is not None for name in front)
    assert all(by_name[name]["test"] is None for name in names if name not in front)
    volume = printed["hypervolume"]
    assert volume["reference"] == [1.0, 0.0]
    assert volume["dev"] == pytest.approx(hypervolume([losses(name, "dev") for name in names], (1, 1)))
    assert volume["test"] == pytest.approx(hypervolume([losses(name, "test") for name in front], (1, 1)))

    recipe = yaml.safe_load((out / "best" / "recipe.yml").read_text())
    assert recipe == by_name[printed["best"]]["recipe"]
    assert (out / "front-dev.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "front-test.png").exists()
    markdown = (out / "sweep.md").read_text()
    assert all(name in markdown for name in [*names, "aligned-llm", "hypervolume (reference point"])


def counted(asked: list[str]) -> Any:
    def respond(loaded: Loaded) -> TransformersRespondent:
        asked.append(loaded.name)
        return TransformersRespondent(loaded, max_new_tokens=8, batch_size=64, threads=1)

    return respond


@pytest.mark.slow
def test_a_rerun_measures_nothing_twice(sweep_document: Document, tmp_path: Path) -> None:
    spec = SweepSpec.load(sweep_document)
    first_asked: list[str] = []
    first = sweep(spec, out=tmp_path, respond=counted(first_asked))
    assert len(first_asked) > 4
    with pytest.raises(UsageError, match="--resume"):
        sweep(spec, out=tmp_path)

    asked: list[str] = []
    again = sweep(spec, out=tmp_path, resume=True, respond=counted(asked))
    assert asked == []
    assert [answers(one.dev) for one in again.candidates] == [answers(one.dev) for one in first.candidates]
    assert [one.name for one in again.front] == [one.name for one in first.front]

    # One is gone, one is damaged, and one is new: these are measured, and of the rest only winners that were none.
    digests = {one.name: one.digest for one in again.candidates}
    stored = tmp_path / "measurements" / "dev"
    (stored / f"{digests['restore/linear@0']}.json").unlink()
    (stored / f"{digests['restore/linear@0.5']}.json").write_text("{")
    more = sweep_document | {"strengths": [0, 0.5, 0.75], "pairings": sweep_document["pairings"][:1]}
    grown = sweep(SweepSpec.load(more), out=tmp_path, resume=True, respond=counted(asked))
    assert asked[:3] == ["restore/linear@0", "restore/linear@0.5", "restore/linear@0.75"]
    assert set(asked[3:]) <= {one.name for one in grown.front} - {one.name for one in first.front}

    # Other settings are another setup: everything is asked again.
    asked.clear()
    longer = sweep_document | {"generation": sweep_document["generation"] | {"max_new_tokens": 4}}
    sweep(SweepSpec.load(longer), out=tmp_path, resume=True, respond=counted(asked))
    assert len(asked) == len(first_asked)


def test_a_candidate_that_fails_is_told_and_the_sweep_goes_on(
    sweep_document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of a method without the base that it needs; of a strength out of range; one that is sound.
    document = sweep_document | {
        "pairings": sweep_document["pairings"][:1],
        "methods": ["mergealign", {"method": "slerp", "strengths": [0.5, 7]}],
    }
    (tmp_path / "sweep.yml").write_text(yaml.safe_dump(document))
    assert main(["sweep", str(tmp_path / "sweep.yml"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "3 of 4 candidates failed" in printed.err
    assert "failed: " in printed.out
    found = {one["name"]: one for one in json.loads((tmp_path / "out" / "sweep.json").read_text())["candidates"]}
    assert found["restore/slerp@0.5"]["state"] == "measured"
    assert "base" in found["restore/mergealign@0.5"]["reason"]
    assert "7.0 is not allowed" in found["restore/slerp@7"]["reason"]


def test_a_merge_that_cannot_be_asked_everything_is_no_winner(sweep_document: Document) -> None:
    models = sweep_document["models"]
    base = str(Path(models["aligned-llm"]).with_name("base-llm"))
    pairings = [{"name": "blind", "models": ["aligned-llm", "base-llm"]}, sweep_document["pairings"][0]]
    document = sweep_document | {"models": models | {"base-llm": base}, "pairings": pairings, "strengths": [0.5]}
    result = sweep(SweepSpec.load(document | {"constraints": ["multimodal_safety <= 1"]}))
    blind, seeing = result.candidates
    assert blind.state is State.FAILED
    assert blind.reason == "has no score multimodal_safety (the model sees no images)"
    assert [one.name for one in result.front] == [seeing.name]


def test_what_cannot_be_measured_is_said_before_anything_is(sweep_document: Document) -> None:
    asked: list[str] = []
    wrong = sweep_document | {
        "objectives": [{"metric": "helpfullness", "direction": "higher"}],
        "constraints": ["text@nobody <= 0.1", "benign/none >= 0.1"],
    }
    with pytest.raises(UsageError) as raised:
        sweep(SweepSpec.load(wrong), respond=counted(asked))
    places = {problem.where for problem in raised.value.problems}
    assert places == {"objectives[0]", "constraints[0]", "constraints[1]"}
    assert asked == []


def test_models_that_are_not_there_are_all_told_before_anything_is_measured(sweep_document: Document) -> None:
    asked: list[str] = []
    wrong = sweep_document | {"models": sweep_document["models"] | {"first": "nowhere/one", "second": "nowhere/two"}}
    with pytest.raises(InputError) as raised:
        sweep(SweepSpec.load(wrong), respond=counted(asked))
    assert all(name in str(raised.value) for name in ("nowhere/one", "nowhere/two"))
    assert asked == []


def test_a_folder_with_something_else_is_left_alone(sweep_document: Document, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="something else than a sweep"):
        sweep(SweepSpec.load(sweep_document), out=tmp_path)


def test_a_constraint_relative_to_a_model_that_cannot_be_asked(sweep_document: Document) -> None:
    relative = sweep_document | {"constraints": ["multimodal_safety <= aligned-llm"]}
    with pytest.raises(UsageError, match="aligned-llm has no score 'multimodal_safety'"):
        sweep(SweepSpec.load(relative))


# -- constraints and pruning ------------------------------------------------------------------------


class Scripted:
    """Answers by what the model is called: strengths above a half refuse everything, others nothing."""

    settings: ClassVar[dict[str, Any]] = {}
    batch_size, sees_images, tells_likelihoods = 64, True, False

    def __init__(self, loaded: Loaded, asked: list[tuple[str, str]]) -> None:
        self.name, self.digest = loaded.name, loaded.digest
        self._asked = asked

    def answer(self, examples: Sequence[Example]) -> list[str]:
        self._asked += [(self.name, one.id) for one in examples]
        strength = float(self.name.partition("@")[2] or 0)
        return ["I'm sorry, but I can't help with that." if strength > 0.5 else "yes"] * len(examples)

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        raise NotImplementedError


def scripted_suites() -> dict[str, list[Suite]]:
    def examples(axis: Axis, scoring: Scoring, prefix: str) -> list[Example]:
        return [Example(f"{prefix}{n}", axis, scoring, f"{prefix} {n}", references=("yes",)) for n in range(20)]

    harm = Suite("harm", examples(Axis.TEXT_SAFETY, Scoring.ATTACK, "h"))
    help_ = Suite("help", examples(Axis.HELPFULNESS, Scoring.EXACT, "b"))
    return {split: [help_, harm] for split in ("dev", "test")}


def scripted(document: Document, asked: list[tuple[str, str]], **change: Any) -> Any:
    objectives = [{"metric": "text_safety", "direction": "lower"}, {"metric": "helpfulness", "direction": "higher"}]
    spec = SweepSpec.load(
        document
        | {"pairings": document["pairings"][:1], "baselines": ["adapted-lvlm"], "objectives": objectives}
        | change
    )
    return sweep(
        spec,
        suites=scripted_suites(),
        judges=[get_judge("patterns")],
        respond=lambda loaded: Scripted(loaded, asked),
    )


def test_constraints_choose_and_are_checked_again_on_the_test_split(sweep_document: Document) -> None:
    free = scripted(sweep_document, [], strengths=[0.25, 0.75])
    assert {one.name: one.meets_constraints for one in free.candidates} == {
        "restore/linear@0.25": True,
        "restore/linear@0.75": True,
    }
    assert free.best.name == "restore/linear@0.75"  # attacks come first
    held = scripted(sweep_document, [], strengths=[0.25, 0.75], constraints=["helpfulness >= 97% of adapted-lvlm"])
    assert [one.name for one in held.front] == ["restore/linear@0.25"]
    assert held.best.test_excesses == {"helpfulness >= 97% of adapted-lvlm": pytest.approx(-0.03)}
    (_, refused) = held.candidates
    assert refused.state is State.MEASURED  # a grid measures to the end
    assert refused.excesses == {"helpfulness >= 97% of adapted-lvlm": pytest.approx(0.97)}


def test_a_hopeless_candidate_is_stopped_after_the_suite_that_shows_it(sweep_document: Document) -> None:
    asked: list[tuple[str, str]] = []
    optuna = {"search": {"optuna": {"trials": 12, "seed": 1, "population": 4}}}
    limits = {"strengths": {"low": 0, "high": 1}, "constraints": ["helpfulness >= 97% of adapted-lvlm"]}
    result = scripted(sweep_document, asked, **optuna, **limits)
    states = {one.name: one.state for one in result.candidates}
    pruned = [one for one in result.candidates if one.state is State.PRUNED]
    assert pruned
    assert all(one.candidate.strength > 0.5 for one in pruned)
    assert all(state is State.MEASURED for name, state in states.items() if float(name.partition("@")[2]) <= 0.5)
    for one in pruned:
        assert "helpfulness is 0.000" in one.reason
        assert {suite for name, suite in asked if name == one.name} == {f"b{n}" for n in range(20)}
    # Where it is not asked for, and where nothing can be said for sure, all is asked.
    thorough = {"search": {"optuna": {"trials": 12, "seed": 1, "population": 4, "pruner": False}}}
    assert not [one for one in scripted(sweep_document, [], **thorough, **limits).candidates if one.state != "measured"]


def test_a_suite_alone_decides_nothing_about_a_pooled_metric(sweep_document: Document) -> None:
    """Two suites lie on the axis of the constraint: the first is hopeless, both together are not."""
    asked: list[tuple[str, str]] = []
    suites = scripted_suites()
    easy = [
        Example(
            f"e{n}", Axis.HELPFULNESS, Scoring.EXACT, f"e {n}", references=("I'm sorry, but I can't help with that.",)
        )
        for n in range(200)
    ]
    suites = {split: [*both, Suite("easy", easy)] for split, both in suites.items()}
    spec = SweepSpec.load(
        sweep_document
        | {
            "pairings": sweep_document["pairings"][:1],
            "baselines": [],
            "strengths": [0.9],
            "search": {"optuna": {"trials": 1}},
            "objectives": [{"metric": "helpfulness", "direction": "higher"}],
            "constraints": ["helpfulness >= 0.85"],
        }
    )
    result = sweep(spec, suites=suites, judges=[get_judge("patterns")], respond=lambda loaded: Scripted(loaded, asked))
    assert [one.state for one in result.candidates] == [State.MEASURED]


def test_optuna_comes_closer_than_its_first_generation(sweep_document: Document) -> None:
    """On losses that are known: the search is told and learns."""
    spec = SweepSpec.load(sweep_document | {"strengths": {"low": 0, "high": 1}, "search": {"optuna": {"trials": 80}}})
    from safegraft_trainers.sweep.candidates import arms_of

    search = Proposed(arms_of(spec), OptunaSearch(trials=80, seed=3, population=10), 2)
    errors: list[float] = []
    for candidate in search:
        error = abs((candidate.strength or 0) - 0.3) + 0.5 * (candidate.pairing == "temper")
        errors.append(error)
        search.tell(Told((error, error / 2), {"a <= 1": error - 1}))
    assert sum(errors[-20:]) < 0.5 * sum(errors[:20])


def test_optuna_bears_failures_and_asks_the_same_again(sweep_document: Document) -> None:
    document = sweep_document | {"strengths": [0, 0.5], "search": {"optuna": {"trials": 9, "seed": 2, "population": 3}}}
    from safegraft_trainers.sweep.candidates import arms_of

    runs: list[list[str]] = []
    for _ in range(2):
        search = Proposed(arms_of(SweepSpec.load(document)), OptunaSearch(trials=9, seed=2, population=3), 2)
        runs.append([])
        for number, candidate in enumerate(search):
            runs[-1].append(candidate.name)
            search.tell(Told(None, pruned=number % 2 == 0) if number % 3 == 0 else Told((0.1 * number, 0.5)))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 9


# -- publishing -------------------------------------------------------------------------------------


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """A publisher that notes what it gets."""
    published: list[tuple[Path, str]] = []

    class Zoo(Publisher):
        name = "zoo"
        summary = "Notes."

        def publish(self, folder: Path, destination: str) -> str:
            if destination == "full":
                raise OutputError("the zoo is full")
            published.append((folder, destination))
            return f"https://zoo.example/{destination}"

    registry = Registry.discover()
    plugin = registry.plugins[0]
    registry.publishers.put("zoo", Zoo(), plugin)
    monkeypatch.setattr(publishing, "registry", lambda: registry)
    return published


def sweep_file(document: Document, folder: Path, **change: Any) -> str:
    path = folder / "sweep.yml"
    path.write_text(yaml.safe_dump(document | {"pairings": document["pairings"][:1]} | change))
    return str(path)


def test_the_best_is_merged_and_published(
    sweep_document: Document, tmp_path: Path, zoo: list[tuple[Path, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = sweep_file(sweep_document, tmp_path), tmp_path / "out"
    assert main(["sweep", path, "--out", str(out), "--publish-best", "zoo:team/x"]) == 0
    assert zoo == [(out / "best" / "merged", "team/x")]
    assert "published: https://zoo.example/team/x" in capsys.readouterr().err
    best = next(
        one
        for document in [json.loads((out / "sweep.json").read_text())]
        for one in document["candidates"]
        if one["name"] == document["best"]
    )
    manifest = json.loads((out / "best" / "merged" / "safegraft.json").read_text())
    assert manifest["plan_digest"] == best["digest"]  # what is published is what was measured
    with safegraft.open(out / "best" / "recipe.yml") as merged:
        assert merged.plan.digest == best["digest"]


def test_the_best_goes_to_the_hub_with_what_was_measured_on_held_out_prompts(
    sweep_document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = sweep_file(sweep_document, tmp_path), tmp_path / "out"
    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path / "cache", token=hub.token)
        monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path / "notes"))
        assert main(["sweep", path, "--out", str(out), "--publish-best", "team/best"]) == 0
        assert f"published: {hub.endpoint}/team/best" in capsys.readouterr().err
        repository = hub.repository("team/best")
        card = repository.read("README.md").decode()
    assert repository.private
    assert "has not been evaluated" not in card
    assert "## Evaluation" in card
    assert repository.files.keys() >= {"model.safetensors", "safegraft.json", "trade-off.png"}


def test_nothing_is_published_that_does_not_meet_the_constraints(
    sweep_document: Document, tmp_path: Path, zoo: list[tuple[Path, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = sweep_file(sweep_document, tmp_path, constraints=["helpfulness >= 1.1"]), tmp_path / "out"
    assert main(["sweep", path, "--out", str(out), "--publish-best", "zoo:team/x"]) == 2
    printed = capsys.readouterr()
    assert "no candidate meets the constraints" in printed.err
    assert "no candidate meets the constraints" in printed.out
    assert not (out / "best" / "recipe.yml").exists()
    assert zoo == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--publish-best", "zoo:x"], "--publish-best needs --out"),
        (["--resume"], "--resume needs --out"),
        (["--out", "o", "--publish-best", "nowhere:x"], "names no publisher that is installed"),
        (["--trials", "3"], "--trials is for random and optuna"),
        (["--token-file", "t"], "add --server"),
    ],
)
def test_arguments_that_make_no_sense(
    sweep_document: Document,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", sweep_file(sweep_document, tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_trials_of_the_command_line_come_first(
    sweep_document: Document, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(sweep_document, tmp_path, search={"random": {"trials": 500}}, strengths={"low": 0, "high": 1})
    assert main(["sweep", path, "--trials", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 1


def test_one_objective_is_drawn_over_the_strength(sweep_document: Document, tmp_path: Path) -> None:
    objectives = [{"metric": "text_safety", "direction": "lower"}]
    spec = SweepSpec.load(sweep_document | {"objectives": objectives, "baselines": []})
    result = sweep(spec, out=tmp_path)
    assert result.best is not None
    assert (tmp_path / "front-dev.png").exists()
    assert not (tmp_path / "front-test.png").exists()


def test_a_misspelt_file_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yml").write_text("models: {a: b}\n")
    assert main(["sweep", str(tmp_path / "sweep.yml")]) == 2
    assert "`suites` is missing" in capsys.readouterr().err
    with pytest.raises(RecipeError):
        SweepSpec.load({"models": 3})
