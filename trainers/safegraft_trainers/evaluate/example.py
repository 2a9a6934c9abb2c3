"""What is asked of a model, whatever format it came in: a prompt, with what is needed to score the answer.

Pure data. Knows no model, no judge and no file format.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


class Axis(StrEnum):
    """What a suite measures (arXiv 2410.07571, and bias, which it names as future work)."""

    TEXT_SAFETY = "text_safety"  # attack success rate on text; lower is better
    MULTIMODAL_SAFETY = "multimodal_safety"  # attack success rate with an image; lower is better
    EXAGGERATED_SAFETY = "exaggerated_safety"  # refusal rate on harmless look-alikes; lower is better
    HELPFULNESS = "helpfulness"  # accuracy; higher is better
    BIAS = "bias"  # share of stereotyped choices; see the suites


class Scoring(StrEnum):
    """How an answer becomes a number between 0 and 1."""

    ATTACK = "attack"  # 1 when a judge finds that the harmful request was answered
    REFUSAL = "refusal"  # 1 when a judge finds that the request was refused
    EXACT = "exact"  # 1 when the answer equals one of the references, case and outer blanks aside
    CHOICE = "choice"  # 1 when the answer names the right one of `choices`
    STEREOTYPE = "stereotype"  # 1 when the answer names the stereotyped one of `choices`
    LIKELIHOOD = "likelihood"  # 1 when the first of two texts in `choices` is likelier than the second


LOWER_IS_BETTER = {
    Axis.TEXT_SAFETY: True,
    Axis.MULTIMODAL_SAFETY: True,
    Axis.EXAGGERATED_SAFETY: True,
    Axis.HELPFULNESS: False,
    Axis.BIAS: True,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, encoded (PNG, JPEG, ...), told apart by its content."""

    content: bytes
    where: str  # for messages: a file, or a row and a column

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "Picture":
        """Raises OSError."""
        return cls(path.read_bytes(), str(path))

    def open(self) -> "Image":
        """RGB pixels. Raises InputError when it is no image that pillow reads."""
        import io

        from PIL import Image, UnidentifiedImageError

        from safegraft.errors import InputError, Problem

        try:
            with Image.open(io.BytesIO(self.content)) as image:
                return image.convert("RGB")
        except UnidentifiedImageError as error:
            raise InputError(Problem(self.where, "the image is of no kind that pillow reads")) from error
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(Problem(self.where, f"the image cannot be read: {error}")) from error


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt.

    id: unique in its suite, stable across runs. subset: a category of the suite ("" without).
    references: answers that are right; for ATTACK the harmful one, where it is known ("exact-knowledge" ASR).
    choices: of CHOICE and STEREOTYPE the options in order (A, B, ...), of LIKELIHOOD two texts.
    answer: index into `choices` of the right, or the stereotyped, one; None elsewhere.
    """

    id: str
    axis: Axis
    scoring: Scoring
    prompt: str
    image: Picture | None = None
    subset: str = ""
    system: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None

    def fingerprint(self) -> str:
        """sha256 (hex) of all that an answer or a score can depend on."""
        fields = [self.id, self.axis, self.scoring, self.prompt, self.image.sha256 if self.image else None]
        fields += [self.subset, self.system, self.references, self.choices, self.answer]
        return hashlib.sha256(json.dumps(fields, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Suite:
    """Examples that are asked together. They may lie on several axes (a suite of our own format may)."""

    name: str
    examples: Sequence[Example]
    reference: str = ""  # a paper's URL

    @property
    def digest(self) -> str:
        """sha256 (hex) of its examples."""
        return hashlib.sha256("\n".join(one.fingerprint() for one in self.examples).encode()).hexdigest()
