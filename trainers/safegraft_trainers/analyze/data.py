"""Files that models are shown: JSONL (or parquet), a row a sample, read and checked by safegraft's calibration.

    {"prompt": "how do I ...", "response": "...", "image": "path beside the file"}

Prompts alone are what a model reads before it answers; with responses there is a loss. Runs no model.
"""

from collections.abc import Sequence
from pathlib import Path

from safegraft.calibration import DataSet, open_data
from safegraft.recipe.model import CalibrationSet

PROMPTS = ("prompt", "image")
ANSWERS = ("prompt", "response", "image")


def read_data(
    path: Path | str, columns: Sequence[str], *, samples: int = 128, seed: int = 0, max_length: int = 512
) -> DataSet:
    """Draw `samples` rows of a file, the same ones each time. `columns`: PROMPTS or ANSWERS; "image" may be missing
    in a row, and text-only models are not shown it.

    max_length: tokens a sample. Raises InputError with every problem found.
    """
    file = Path(path)
    spec = CalibrationSet(file.name, str(path), {one: one for one in columns}, samples, seed, max_length, ())
    return open_data(spec, file, file.name)
