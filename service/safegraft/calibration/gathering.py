"""From a request to a file of statistics: found in the cache, or computed into it.

The same request gives the same bytes on one machine with one number of torch's threads.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from safegraft.calibration import cosines, gradients, inputs
from safegraft.calibration.cache import Drawer, Gathered, Shapes, Sheet, default_folder
from safegraft.calibration.data import DataSet
from safegraft.calibration.data import Sample as DataSample
from safegraft.calibration.model import WorkingModel
from safegraft.calibration.preference import train_mask
from safegraft.calibration.progress import Cancelled, Report, stop_if
from safegraft.calibration.request import Request
from safegraft.calibration.sweep import sweep
from safegraft.calibration.wording import Worded, Wording
from safegraft.errors import InputError, NonFiniteError, OutputError, Problem
from safegraft.methods.contract import Statistic

MAX_PROBLEMS = 5  # of samples; the reader knows by then what is wrong with the data

Sample = Callable[[], Worded]


def gather_statistics(request: Request, cache: Path | None, cancelled: Cancelled, report: Report) -> Gathered:
    """See `safegraft.calibration.gather`."""
    made_by = " ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    drawer = Drawer(cache or default_folder(), request.digest, made_by, _newer_than(request))
    found = drawer.find()
    if found is not None:
        return found
    with drawer.held(cancelled):
        found = drawer.find()  # made by whoever held it before
        if found is None:
            _compute(request, drawer, cancelled, report)
            found = drawer.find()
    if found is None:
        raise OutputError(f"{drawer.path}: is damaged although it has just been written; is the disk sound?")
    return found


def _newer_than(request: Request) -> int:
    """A digest over a sample of the weights does not notice every edit; their times of modification do."""
    models = [one for one in (request.checkpoint, request.reference) if one is not None]
    return max((one.modified_ns() for one in models if one.identity.scheme == "sampled-sha256"), default=0)


@dataclass(frozen=True, slots=True)
class _Work:
    """A request in hand."""

    request: Request
    model: WorkingModel
    samples: Sequence[Sample]
    drawer: Drawer
    cancelled: Cancelled
    report: Report


def _compute(request: Request, drawer: Drawer, cancelled: Cancelled, report: Report) -> None:
    # First everything that can be wrong with little work.
    wording = Wording(request.checkpoint, any(data.has_images for data in request.data))
    samples = _samples(request, wording)
    _try_all(samples, cancelled)
    work = _Work(request, WorkingModel(request.checkpoint), samples, drawer, cancelled, report)
    with torch.random.fork_rng(devices=[]):  # nothing here draws from it, but some models do
        torch.manual_seed(0)
        match request.statistic:
            case Statistic.GRADIENT_SQUARE | Statistic.SALIENCY:
                _gradients(work)
            case Statistic.INPUT_NORM | Statistic.INPUT_GRAM:
                _inputs(work)
            case Statistic.LAYER_COSINES:
                _cosines(work)
            case Statistic.PREFERENCE_MASK:
                _preference(work)


def _gradients(work: _Work) -> None:
    with _sheet(work, gradients.shapes(work.model, set(work.request.tensors))) as sheet:
        observer = gradients.Gradients(work.model, gradients.SCORES[work.request.statistic], sheet, len(work.samples))
        try:
            sweep(work.model, observer, work.samples, work.cancelled, work.report)
        except NonFiniteError as error:  # which knows the sample and not whose loss it is
            name = work.request.checkpoint.name
            advice = "repair or replace the model; `on_nan` is about what is merged, and cannot help a model at work"
            raise NonFiniteError(
                [Problem(name, f"at {one.where}: {one.message}; {advice}") for one in error.problems]
            ) from error


def _inputs(work: _Work) -> None:
    linears = inputs.find_linears(work.model, set(work.request.tensors))
    with _sheet(work, inputs.shapes(work.model, linears, work.request.statistic)) as sheet:
        if work.request.statistic is Statistic.INPUT_NORM:
            observer = inputs.InputNorms(work.model, linears, sheet)
        else:
            observer = inputs.InputGrams(work.model, linears, sheet, len(work.samples))
        sweep(work.model, observer, work.samples, work.cancelled, work.report)
        observer.finish()


def _cosines(work: _Work) -> None:
    normal, malicious = (data.count for data in work.request.data)
    with _sheet(work, cosines.shapes(work.model, set(work.request.tensors))) as sheet:
        observer = cosines.Cosines(work.model, sheet, normal, malicious)
        sweep(work.model, observer, work.samples, work.cancelled, work.report)
        observer.finish()


def _preference(work: _Work) -> None:
    assert work.request.reference is not None  # `problems` has said so otherwise
    pairs = list(zip(work.samples[::2], work.samples[1::2], strict=True))
    seed = int(work.request.digest[:15], 16)  # of the noise: below 2^63
    with _sheet(work, gradients.shapes(work.model, set(work.request.tensors))) as sheet:
        train_mask(work.model, work.request.reference, pairs, sheet, seed, work.cancelled, work.report)


@contextmanager
def _sheet(work: _Work, shapes: Shapes) -> Generator[Sheet]:
    """A sheet that becomes the request's file if the models are still the same when it is full."""
    with work.drawer.filled(shapes) as sheet:
        yield sheet
        work.request.checkpoint.verify_unchanged()
        if work.request.reference is not None:
            work.request.reference.verify_unchanged()


def _samples(request: Request, wording: Wording) -> list[Sample]:
    """Each worded when it is called: pictures of all samples at once would fill the memory."""
    return [
        partial(way, sample, data.max_length)
        for data in request.data
        for sample in data.samples
        for way in _ways(request.statistic, data, wording)
    ]


def _ways(statistic: Statistic, data: DataSet, wording: Wording) -> list[Callable[[DataSample, int], Worded]]:
    """How a set's samples are shown: once, or in two versions one after the other."""
    if statistic is Statistic.PREFERENCE_MASK:
        return [partial(wording.response, "chosen"), partial(wording.response, "rejected")]
    if "text" in data.fields:
        return [wording.text]
    return [wording.prompt if statistic is Statistic.LAYER_COSINES else partial(wording.response, "response")]


def _try_all(samples: Sequence[Sample], cancelled: Cancelled) -> None:
    """Raise the first problems of samples that cannot be worded."""
    problems: list[Problem] = []
    for sample in samples:
        stop_if(cancelled)
        try:
            sample()
        except InputError as error:
            problems += error.problems
            if len(problems) >= MAX_PROBLEMS:
                break
    if problems:
        raise InputError(problems)
