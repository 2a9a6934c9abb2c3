"""What a format of prompts is: a name, and how its files become examples.

A module of this folder that knows one family of formats holds them in `FORMATS: tuple[Format, ...]`. Knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from safegraft_trainers.evaluate.example import Axis, Example


@dataclass(frozen=True, slots=True)
class Format:
    """A public format.

    name: as in `--suite NAME=PATH`. axis: what it measures; None when each example says so itself.
    load: from a file, a folder or the name of a data set in the local Hub cache to examples; raises InputError with
    every problem found. hub_name: where it usually is; None when it is on no Hub. reference: a paper's URL.
    """

    name: str
    axis: Axis | None
    load: Callable[[str], Sequence[Example]]
    hub_name: str | None
    reference: str


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """The prompt of a CHOICE or STEREOTYPE example: `Example.prompt` is asked as it is, so it holds its options.

    Letters stand before the options, as scoring reads them back.
    """
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter of the right option."
