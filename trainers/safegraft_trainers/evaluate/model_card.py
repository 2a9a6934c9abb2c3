"""Writes what an evaluation found into a folder's README.md, with a picture of the trade-off where there is one.

The words and numbers are safegraft.hub.evaluated's, as for a merge that is published with an evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

from safegraft.errors import InputError, Problem, UsageError
from safegraft.hub.evaluated import with_evaluation
from safegraft.hub.evaluation import read_document
from safegraft.hub.markdown import code
from safegraft_trainers.evaluate.plots import trade_off
from safegraft_trainers.evaluate.results import Evaluation, document_of, write_whole

CARD = "README.md"
PLOT = "trade-off.png"


def write_card(folder: Path, evaluation: Evaluation, others: Sequence[Evaluation] = ()) -> Path:
    """Put `evaluation`, beside those of other models, into the card of the model in `folder`. Returns the card's path.

    A folder without a card gets a short one. Raises InputError when the card cannot be read, OutputError.
    """
    path = folder / CARD
    card = _read(path, evaluation.model)
    document = read_document(document_of([evaluation, *others]))
    evaluated = with_evaluation(card, document, _drawn(folder, [evaluation, *others]), name=folder.resolve().name)
    write_whole(path, evaluated.decode())
    return path


def _read(path: Path, model: str) -> bytes:
    """The card that is there, or a short one."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return f"# {code(Path(model).name)}\n".encode()
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}")) from error


def _drawn(folder: Path, evaluations: Sequence[Evaluation]) -> str | None:
    """The name of the picture, once it is drawn; None when there is no trade-off among these."""
    try:
        trade_off(evaluations, folder / PLOT)
    except UsageError:
        return None
    return PLOT
