"""The story of a sweep: baselines, candidates, the front on the dev split, the winners on held-out prompts.

Knows the order of things; each is done by a module beside this one.
"""

import contextlib
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.engine.execute import usable
from safegraft.errors import InputError, PluginError, Problem, RecipeError, UsageError
from safegraft.local import open_model
from safegraft_trainers.evaluate.example import Suite
from safegraft_trainers.evaluate.judges import Judge, get_judge
from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.evaluate.suites import SPLITS, load_suites
from safegraft_trainers.sweep.candidates import Candidate, arms_of
from safegraft_trainers.sweep.constraint import Constraint
from safegraft_trainers.sweep.domination import domination, values_of
from safegraft_trainers.sweep.front import hypervolume, pareto_front
from safegraft_trainers.sweep.measuring import (
    Bench,
    Bounds,
    Respond,
    baseline_recipe,
    check_metrics,
    responding,
)
from safegraft_trainers.sweep.merged import LocalMerger, RemoteMerger
from safegraft_trainers.sweep.objective import losses
from safegraft_trainers.sweep.report import write_report
from safegraft_trainers.sweep.resident import Resident
from safegraft_trainers.sweep.result import BaselineResult, CandidateResult, Hypervolume, State, SweepResult
from safegraft_trainers.sweep.search import Told, search_of
from safegraft_trainers.sweep.spec import SweepSpec
from safegraft_trainers.sweep.store import Measurement, Store

if TYPE_CHECKING:
    from safegraft import Client

DEV, TEST = SPLITS
STORED = "measurements"  # in the output folder
CACHE = "cache"

Progress = Callable[[int, int, str], None]  # candidates done, in all, what is being done


def sweep(
    spec: SweepSpec,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    client: "Client | None" = None,
    suites: Mapping[str, Sequence[Suite]] | None = None,
    judges: Sequence[Judge] | None = None,
    respond: Respond | None = None,
) -> SweepResult:
    """Run a sweep.

    out: a folder for evaluations and for what the sweep found; None keeps nothing. resume: go on with what an earlier
    run has left there. progress: called before and after each candidate. client: a server that merges; models are
    named as it knows them. suites ("dev" and "test"), judges, respond: instead of what the spec names.

    Raises UsageError, RecipeError and InputError for what is wrong before the first candidate, OutputError and
    ServerError. A candidate that fails is part of the result.
    """
    show = progress or _silent
    if out is not None:
        _check_out(out, resume)
    usable(spec.generation.device)
    if client is None:
        _check_models(spec)
    with _bench(spec, out, client, suites, judges, respond) as bench:
        check_metrics(_metrics(spec), bench.suites, bench.judges)
        show(0, 0, "baselines")
        measured = {name: _baseline(bench, spec, name, show) for name in spec.measured}
        bounds = {split: _bounds(spec, measured, split) for split in SPLITS}
        candidates = _try_all(bench, spec, bounds[DEV], show)
        front, best = choose(spec, candidates)
        tested = {one.name: _test(bench, spec, one, measured, bounds[TEST], show) for one in front}
        candidates = [tested.get(one.name, one) for one in candidates]
    result = SweepResult(
        spec=spec,
        candidates=tuple(candidates),
        baselines=tuple(measured.values()),
        front=tuple(tested[one.name] for one in front),
        best=None if best is None else tested[best.name],
        hypervolume=_hypervolume(spec, candidates, list(tested.values()), list(measured.values())),
        bounds={split: tuple(found) for split, found in bounds.items()},
    )
    if out is not None:
        write_report(result, out)
    return result


def choose(
    spec: SweepSpec, candidates: Sequence[CandidateResult]
) -> tuple[list[CandidateResult], CandidateResult | None]:
    """The front of those that meet the constraints, on the dev split, best first by the objectives in their order."""
    points = {
        one.name: losses(spec.objectives, values)
        for one in candidates
        if one.meets_constraints and one.dev is not None
        if (values := values_of(one.dev, spec.objectives)) is not None
    }
    fit = [one for one in candidates if one.name in points]
    front = [fit[index] for index in pareto_front([points[one.name] for one in fit])]
    front.sort(key=lambda one: points[one.name])
    return front, (front[0] if front else None)


# -- before -----------------------------------------------------------------------------------------


def _silent(done: int, total: int, doing: str) -> None:
    pass


def _check_out(out: Path, resume: bool) -> None:
    if (out / STORED).exists() and not resume:
        raise UsageError(f"{out} holds an earlier sweep; go on with it by --resume, or give another folder")
    if not (out / STORED).exists() and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} holds something else than a sweep; give another folder")


def _check_models(spec: SweepSpec) -> None:
    """Every model can be opened, before hours are spent on the others. Raises InputError with all that cannot."""
    problems: list[Problem] = []
    for reference in dict.fromkeys([*spec.models.values(), *map(spec.reference, spec.measured)]):
        try:
            open_model(reference).close()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


@contextlib.contextmanager
def _bench(
    spec: SweepSpec,
    out: Path | None,
    client: "Client | None",
    suites: Mapping[str, Sequence[Suite]] | None,
    judges: Sequence[Judge] | None,
    respond: Respond | None,
) -> Generator[Bench]:
    """Suites and judges, loaded once."""
    generation = spec.generation
    with tempfile.TemporaryDirectory(prefix="safegraft-sweep-") as scratch:
        yield Bench(
            merger=LocalMerger(generation.threads) if client is None else RemoteMerger(client),
            resident=Resident(generation.dtype, generation.device),
            respond=respond or responding(generation),
            suites=suites or {split: _load(spec, split) for split in SPLITS},
            judges=judges or [get_judge(one) for one in spec.judges],
            generation=generation,
            store=Store(None if out is None else out / STORED),
            cache=Path(scratch) if out is None else out / CACHE,
            seed=spec.seed,
        )


def _load(spec: SweepSpec, split: str) -> list[Suite]:
    return load_suites(spec.suites, limit=spec.limit, seed=spec.seed, split=split)


def _metrics(spec: SweepSpec) -> list[tuple[str, str]]:
    named = [(f"objectives[{index}]", one.metric) for index, one in enumerate(spec.objectives)]
    return named + [(f"constraints[{index}]", one.metric) for index, one in enumerate(spec.constraints)]


def _baseline(bench: Bench, spec: SweepSpec, name: str, show: Progress) -> BaselineResult:
    show(0, 0, name)
    reference = spec.reference(name)
    recipe = baseline_recipe(reference)
    dev = bench.measure(recipe, name, DEV)
    return BaselineResult(name, reference, dev.digest, dev.evaluation, bench.measure(recipe, name, TEST).evaluation)


def _bounds(spec: SweepSpec, baselines: Mapping[str, BaselineResult], split: str) -> Bounds:
    """Each constraint's limit. Raises UsageError when the model that it names has no such score."""
    found: list[tuple[Constraint, float]] = []
    for one in spec.constraints:
        if one.model is None:
            found.append((one, one.bound(None)))
            continue
        baseline = baselines[one.model]
        found.append((one, one.bound((baseline.dev if split == DEV else baseline.test).metric(one.metric).value)))
    return found


# -- candidates -------------------------------------------------------------------------------------


def _try_all(bench: Bench, spec: SweepSpec, bounds: Bounds, show: Progress) -> list[CandidateResult]:
    search = search_of(spec, arms_of(spec))
    results: dict[str, CandidateResult] = {}
    for number, candidate in enumerate(search):
        show(number, search.total, candidate.name)
        if candidate.name not in results:  # a search may come back to one
            results[candidate.name] = _try(bench, spec, candidate, bounds, prune=search.prunes)
        search.tell(_told(spec, results[candidate.name]))
    show(search.total, search.total, "done")
    return list(results.values())


def _try(bench: Bench, spec: SweepSpec, candidate: Candidate, bounds: Bounds, *, prune: bool) -> CandidateResult:
    try:
        found = bench.measure(candidate.recipe, candidate.name, DEV, bounds if prune else ())
    except (RecipeError, InputError, PluginError) as error:
        return CandidateResult(candidate, State.FAILED, reason=str(error))
    except (RuntimeError, ValueError, ArithmeticError) as error:
        # torch and transformers, of a merge that computes no more: NaN where a token should be drawn.
        return CandidateResult(candidate, State.FAILED, reason=f"{type(error).__name__}: {error}")
    if found.pruned:
        return _result(candidate, State.PRUNED, found, {})
    if missing := _missing(spec, found.evaluation):
        return replace(_result(candidate, State.FAILED, found, {}), reason=missing)
    return _result(candidate, State.MEASURED, found, _excesses(found.evaluation, bounds))


def _result(candidate: Candidate, state: State, found: Measurement, excesses: Mapping[str, float]) -> CandidateResult:
    return CandidateResult(
        candidate,
        state,
        digest=found.digest,
        dev=found.evaluation,
        reason=found.pruned,
        excesses=excesses,
        warnings=found.warnings,
    )


def _missing(spec: SweepSpec, evaluation: Evaluation) -> str:
    """Which scores a merge cannot have, such as one of LLMs that of images; "" when it has all."""
    lacking = [name for name in dict.fromkeys(name for _, name in _metrics(spec)) if evaluation.find(name) is None]
    why = f" ({'; '.join(evaluation.skipped)})" if evaluation.skipped else ""
    return f"has no score {' and '.join(lacking)}{why}" if lacking else ""


def _excesses(evaluation: Evaluation, bounds: Bounds) -> dict[str, float]:
    return {one.text: one.excess(evaluation.metric(one.metric).value, bound) for one, bound in bounds}


def _told(spec: SweepSpec, result: CandidateResult) -> Told:
    if result.state is not State.MEASURED or result.dev is None:
        return Told(None, pruned=result.state is State.PRUNED)
    values = values_of(result.dev, spec.objectives)
    return Told(None if values is None else losses(spec.objectives, values), result.excesses)


# -- winners ----------------------------------------------------------------------------------------


def _test(
    bench: Bench,
    spec: SweepSpec,
    winner: CandidateResult,
    baselines: Mapping[str, BaselineResult],
    bounds: Bounds,
    show: Progress,
) -> CandidateResult:
    show(0, 0, f"{winner.name} on held-out prompts")
    found = bench.measure(winner.candidate.recipe, winner.name, TEST).evaluation
    compared = {name: one.test for name, one in baselines.items()}
    return replace(
        winner,
        test=found,
        test_excesses=_excesses(found, bounds),
        domination=domination(found, compared, spec.objectives, seed=spec.seed),
    )


def _hypervolume(
    spec: SweepSpec,
    candidates: Sequence[CandidateResult],
    winners: Sequence[CandidateResult],
    baselines: Sequence[BaselineResult],
) -> Hypervolume:
    fit = [one.dev for one in candidates if one.meets_constraints]
    return Hypervolume(
        reference=tuple(one.worst for one in spec.objectives),
        dev=_volume(spec, fit),
        test=_volume(spec, [one.test for one in winners]),
        baselines_dev=_volume(spec, [one.dev for one in baselines]),
        baselines_test=_volume(spec, [one.test for one in baselines]),
    )


def _volume(spec: SweepSpec, evaluations: Sequence[Evaluation | None]) -> float:
    found = [values_of(one, spec.objectives) for one in evaluations if one is not None]
    points = [losses(spec.objectives, values) for values in found if values is not None]
    return hypervolume(points, [1.0] * len(spec.objectives))
