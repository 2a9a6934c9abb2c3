"""From a request to a file of statistics: found in the cache, or computed into it.

The same request gives the same bytes on one machine with one number of torch's threads.
"""

# torch types its own functions in part.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
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


def _compute(request: Request, drawer: Drawer, cancelled: Cancelled, report: Report) -> None:
    # First everything that can be wrong with little work.
    wording = Wording(request.checkpoint, any(data.has_images for data in request.data))
    samples = _samples(request, wording)
    _try_all(samples, cancelled)
    model = WorkingModel(request.checkpoint)
    with torch.random.fork_rng(devices=[]):  # nothing here draws from it, but some models do
        torch.manual_seed(0)
        match request.statistic:
            case Statistic.GRADIENT_SQUARE | Statistic.SALIENCY:
                _gradients(request, model, samples, drawer, cancelled, report)
            case Statistic.INPUT_NORM | Statistic.INPUT_GRAM:
                _inputs(request, model, samples, drawer, cancelled, report)
            case Statistic.LAYER_COSINES:
                _cosines(request, model, samples, drawer, cancelled, report)
            case Statistic.PREFERENCE_MASK:
                _preference(request, model, samples, drawer, cancelled, report)


def _gradients(
    request: Request,
    model: WorkingModel,
    samples: Sequence[Sample],
    drawer: Drawer,
    cancelled: Cancelled,
    report: Report,
) -> None:
    with _sheet(request, drawer, gradients.shapes(model, set(request.tensors))) as sheet:
        observer = gradients.Gradients(model, gradients.SCORES[request.statistic], sheet, len(samples))
        try:
            sweep(model, observer, samples, cancelled, report)
        except NonFiniteError as error:  # which knows the sample and not whose loss it is
            name = request.checkpoint.name
            advice = "repair or replace the model; `on_nan` is about what is merged, and cannot help a model at work"
            raise NonFiniteError(
                [Problem(name, f"at {one.where}: {one.message}; {advice}") for one in error.problems]
            ) from error


def _inputs(
    request: Request,
    model: WorkingModel,
    samples: Sequence[Sample],
    drawer: Drawer,
    cancelled: Cancelled,
    report: Report,
) -> None:
    linears = inputs.find_linears(model, set(request.tensors))
    with _sheet(request, drawer, inputs.shapes(model, linears, request.statistic)) as sheet:
        if request.statistic is Statistic.INPUT_NORM:
            observer = inputs.InputNorms(model, linears, sheet)
        else:
            observer = inputs.InputGrams(model, linears, sheet, len(samples))
        sweep(model, observer, samples, cancelled, report)
        observer.finish()


def _cosines(
    request: Request,
    model: WorkingModel,
    samples: Sequence[Sample],
    drawer: Drawer,
    cancelled: Cancelled,
    report: Report,
) -> None:
    normal, malicious = (data.count for data in request.data)
    with _sheet(request, drawer, cosines.shapes(model, set(request.tensors))) as sheet:
        observer = cosines.Cosines(model, sheet, normal, malicious)
        sweep(model, observer, samples, cancelled, report)
        observer.finish()


def _preference(
    request: Request,
    model: WorkingModel,
    samples: Sequence[Sample],
    drawer: Drawer,
    cancelled: Cancelled,
    report: Report,
) -> None:
    assert request.reference is not None  # `problems` has said so otherwise
    pairs = list(zip(samples[::2], samples[1::2], strict=True))
    seed = int(request.digest[:15], 16)  # of the noise: below 2^63
    with _sheet(request, drawer, gradients.shapes(model, set(request.tensors))) as sheet:
        train_mask(model, request.reference, pairs, sheet, seed, cancelled, report)


@contextmanager
def _sheet(request: Request, drawer: Drawer, shapes: Shapes) -> Generator[Sheet]:
    """A sheet that becomes the request's file if the models are still the same when it is full."""
    with drawer.filled(shapes) as sheet:
        yield sheet
        request.checkpoint.verify_unchanged()
        if request.reference is not None:
            request.reference.verify_unchanged()


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
