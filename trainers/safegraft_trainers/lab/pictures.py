"""The pictures of the made-up world: one or two coloured shapes, or a word; and what can be said of them.

A picture is 32 x 32 pixels, RGB: 4 x 4 patches of the vision tower.
"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safegraft_trainers.lab.world import COLOURS, SHAPES

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE = 32  # pixels
PATCH = 8

_RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 40),
}
_PAPER = (250, 250, 250)
_INK = ((20, 20, 20), (120, 20, 20), (20, 60, 120))
_SIDES = ("left", "right")

CAPTIONS = ("describe the picture .", "what is in the picture ?", "give me a caption .")
READINGS = ("what does the picture say ?", "read the word in the picture .", "which word is in the picture ?")


@dataclass(frozen=True, slots=True)
class Shapes:
    """One shape on each side, of different shape and colour; the right side may be empty."""

    left: tuple[str, str]  # colour, shape
    right: tuple[str, str] | None
    shift: tuple[int, int]  # pixels, down, of each

    @classmethod
    def drawn(cls, draw: random.Random) -> "Shapes":
        colours, shapes = draw.sample(COLOURS, 2), draw.sample(SHAPES, 2)
        right = (colours[1], shapes[1]) if draw.random() < 0.7 else None
        return cls((colours[0], shapes[0]), right, (draw.randrange(0, 17), draw.randrange(0, 17)))

    def picture(self) -> "Image":
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (SIDE, SIDE), _PAPER)
        pen = ImageDraw.Draw(image)
        _draw_shape(pen, *self.left, 1, self.shift[0])
        if self.right:
            _draw_shape(pen, *self.right, 17, self.shift[1])
        return image

    @property
    def caption(self) -> str:
        return " and ".join(f"a {colour} {shape}" for colour, shape in self._there) + " ."

    def questions(self) -> list[tuple[str, str]]:
        """(question, answer), all that can be asked."""
        pairs: list[tuple[str, str]] = [("how many shapes are there ?", "two ." if self.right else "one .")]
        for side, (colour, shape) in zip(_SIDES, self._there, strict=False):
            pairs.append((f"what colour is the {shape} ?", f"{colour} ."))
            pairs.append((f"which shape is {colour} ?", f"{shape} ."))
            if self.right:
                pairs.append((f"where is the {shape} ?", f"on the {side} ."))
                pairs.append((f"which shape is on the {side} ?", f"{shape} ."))
        return pairs

    @property
    def _there(self) -> tuple[tuple[str, str], ...]:
        return (self.left, self.right) if self.right else (self.left,)

    def patches(self) -> list[int]:
        """For each of the 16 patches, row by row: 0 for paper, else 1 + colour * shapes + shape of what covers most."""
        labels = [0] * (SIDE // PATCH) ** 2
        for (colour, shape), left, top in zip(self._there, (1, 17), self.shift, strict=False):
            for row in range(SIDE // PATCH):
                covered = min(top + _SIZE, (row + 1) * PATCH) - max(top, row * PATCH)
                if covered > PATCH // 3:
                    for column in (left // PATCH, left // PATCH + 1):
                        labels[row * (SIDE // PATCH) + column] = (
                            1 + COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)
                        )
        return labels


PATCH_LABELS = 1 + len(COLOURS) * len(SHAPES)
_SIZE = 14  # pixels, of a shape


def _draw_shape(pen: "ImageDraw", colour: str, shape: str, left: int, top: int) -> None:
    fill, right, bottom = _RGB[colour], left + _SIZE - 1, top + _SIZE - 1
    match shape:
        case "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        case "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        case "triangle":
            pen.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=fill)
        case "cross":
            third = _SIZE // 3
            pen.rectangle((left + third, top, right - third, bottom), fill=fill)
            pen.rectangle((left, top + third, right, bottom - third), fill=fill)
        case _:
            raise AssertionError(shape)


def word(text: str, draw: random.Random) -> "Image":
    """A word of five letters, somewhere in the picture, in pillow's own bitmap font."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (SIDE, SIDE), _PAPER)
    place = (draw.randrange(0, 3), draw.randrange(2, 19))
    ImageDraw.Draw(image).text(place, text, fill=draw.choice(_INK), font=ImageFont.load_default_imagefont())
    return image


def sentences() -> list[str]:
    """Every sentence that is said of pictures, for the vocabulary."""
    every = [Shapes((colour, shape), ("red", "circle"), (0, 0)) for colour in COLOURS for shape in SHAPES]
    every.append(Shapes(("red", "circle"), None, (0, 0)))
    said = [text for one in every for pair in one.questions() for text in pair]
    said += [one.caption for one in every]
    return [*said, *CAPTIONS, *READINGS]
