"""Tasks of EleutherAI's lm-evaluation-harness, asked of a model that is already in memory.

The harness does the work; here a loaded model is handed over and the results come back as scores. Text only: an LVLM
answers with its language part. Knows no suite of ours.
"""

# lm_eval is typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import difflib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.results import Score
from safegraft_trainers.loading import Loaded

Z = 1.959964  # the normal distribution's two-sided 95 % quantile
RESAMPLES = 10_000  # for metrics whose standard error has no formula
UNSURE = "N/A"  # the harness's word for a standard error that there is none of


def run(
    loaded: Loaded,
    tasks: Sequence[str],
    limit: int | None = None,
    *,
    include: Sequence[Path] = (),
    few_shot: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    seed: int = 0,
) -> list[Score]:
    """Scores named `harness/TASK/METRIC` (`METRIC,FILTER` where a task filters answers), groups after their tasks.

    tasks: names of tasks, groups or tags. limit: documents a task. include: folders of task YAML files, searched
    beside the harness's own; they may refer to local data, so nothing needs a network. few_shot: examples before each
    question; None for what the task says. chat: whether prompts go through the chat template.

    A score is what the task reports, mostly but not always between 0 and 1; its interval is the value ± 1.96 standard
    errors, and of no width where the harness knows none. `lower_is_better` is the task's word.
    Raises InputError when lm-eval is not installed, a task is unknown or its data cannot be had.
    """
    _require_harness()
    manager = _manager(tasks, include)
    found = _evaluate(
        model=_model(loaded, batch_size),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        num_fewshot=few_shot,
        apply_chat_template=chat,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return list(_scores(found))


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-evaluation-harness is not installed: pip install 'safegraft[harness]'")


def _manager(tasks: Sequence[str], include: Sequence[Path]) -> Any:
    """What knows the tasks. The harness's own thousands are read, which takes seconds, only when they are needed."""
    from lm_eval.tasks import TaskManager

    missing = [Problem(str(folder), "there is no such folder of tasks") for folder in include if not folder.is_dir()]
    if missing:
        raise InputError(missing)
    folders: Any = [str(folder) for folder in include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    _check(tasks, manager.all_tasks)
    return manager


def _check(tasks: Sequence[str], known: Sequence[str]) -> None:
    problems: list[Problem] = []
    for task in tasks:
        if task not in known:
            close = ", ".join(difflib.get_close_matches(task, known, n=3))
            hint = f"did you mean {close}?" if close else "`lm-eval ls tasks` lists them"
            problems.append(Problem(task, f"the harness has no such task; {hint}"))
    if not tasks:
        problems.append(Problem("", "name at least one task of the harness"))
    if problems:
        raise InputError(problems)


def _model(loaded: Loaded, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    text: Any = loaded.model.config.get_text_config()
    kind: Any = HFLM
    return kind(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",  # which the harness would guess from the class, and fail for an LVLM's
        max_length=text.max_position_embeddings,
        batch_size=batch_size,
        device=str(loaded.device),
    )


def _evaluate(tasks: list[str], **arguments: Any) -> Mapping[str, Any]:
    import lm_eval

    evaluate: Any = lm_eval.simple_evaluate
    try:
        found = evaluate(tasks=tasks, **arguments)
    except Exception as error:  # tasks are strangers' code and data, fetched by strangers' code
        what = f"the harness could not run them: {type(error).__name__}: {error}"
        raise InputError(Problem(", ".join(tasks), what)) from error
    if found is None:  # on every process but the first
        raise InputError("the harness keeps its results on the first process: evaluate on one")
    return found


def _scores(found: Mapping[str, Any]) -> Iterator[Score]:
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        counted = found["n-samples"].get(task, {}).get("effective") or metrics.get("sample_len") or 0
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue  # names and counts, and the standard errors, which are read with their metric
            error = metrics.get(f"{metric}_stderr,{filtered}", UNSURE)
            slack = 0.0 if error == UNSURE else Z * float(error)
            higher = found["higher_is_better"].get(task, {}).get(metric)
            name = f"harness/{task}/{metric}" + ("" if filtered == "none" else f",{filtered}")
            yield Score(name, float(value), value - slack, value + slack, int(counted), higher is False)
