"""What a model does at work on data, tensor by tensor: statistics for the merge methods that ask for them.

    open_data -> Request -> problems, notes        when planning: reads the data and config.json, no weight, no torch
    gather    -> Gathered                          when merging: runs the model, once for each request

data.py        a recipe's data set: read, checked, drawn
rows.py        rows of a JSONL or parquet file
request.py     which statistic, of which model, on which data; its digest; what speaks against it
gathering.py   from a request to a file of statistics, computed or found in the cache
cache.py       that file: written as values come, checked before it is used again
wording.py     a sample as tokens and pixels
model.py       a transformers model over a checkpoint, in parts that come and go
mapping.py     which checkpoint tensors make which parameters, and the way back
turns.py       many passes through a model at once, layer by layer
memory.py      giving freed memory back
sweep.py       the samples' passes through one model
gradients.py   gradient_square, saliency
inputs.py      input_norm, input_gram
cosines.py     layer_cosines
preference.py  preference_mask

Knows checkpoints and the contract of a merge method; nothing of plans, merges, the network or the command line.
"""

from pathlib import Path

from safegraft.calibration.cache import Gathered
from safegraft.calibration.data import DataSet, open_data
from safegraft.calibration.progress import Cancelled, Progress, Report, never, unreported
from safegraft.calibration.request import Request, notes, problems

__all__ = ["DataSet", "Gathered", "Progress", "Request", "gather", "notes", "open_data", "problems"]


def gather(
    request: Request,
    cache: Path | None = None,
    *,
    cancelled: Cancelled = never,
    progress: Report = unreported,
) -> Gathered:
    """The statistics a request asks for, from `cache` where they lie there already.

    cache: a folder; default: $SAFEGRAFT_CACHE/statistics, else ~/.cache/safegraft/statistics.
    Raises InputError (a sample or a model that cannot be used), NonFiniteError, InputChangedError, OutputError
    (disk full, no permission) and MergeCancelledError.
    """
    from safegraft.calibration.gathering import gather_statistics  # torch and transformers: only those pay who gather

    return gather_statistics(request, cache, cancelled, progress)
