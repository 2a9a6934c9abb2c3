"""What was asked for: a recipe, read from YAML or from a mapping, with every problem and its place.

model.py           Recipe and its parts: data only
document.py        YAML text to plain data with line numbers, within bounds
values.py          typed access to plain data
calibration.py     the data sets that methods are calibrated on
slices.py          `slices` and `modules`: results put together from layers and parts
tokenizer.py       `tokenizer` and `chat_template`
read.py            plain data to a Recipe: keys, types, references
reference.py       model references: path, revision, adapter
canonical_form.py  a recipe as JSON: the form that digests and manifests hold

Nothing here knows merge methods, models or the engine, and of the disk only the recipe's own file
and whether a folder of a model's name exists.
"""

from safegraft.recipe.canonical_form import canonical
from safegraft.recipe.model import (
    Condition,
    ModelEntry,
    Module,
    OutputSlice,
    Override,
    Recipe,
    Scalar,
    Setting,
    Settings,
    SliceSource,
    TokenEmbedding,
    TokenizerChoice,
)
from safegraft.recipe.read import parse_recipe, read_recipe

__all__ = [
    "Condition",
    "ModelEntry",
    "Module",
    "OutputSlice",
    "Override",
    "Recipe",
    "Scalar",
    "Setting",
    "Settings",
    "SliceSource",
    "TokenEmbedding",
    "TokenizerChoice",
    "canonical",
    "parse_recipe",
    "read_recipe",
]
