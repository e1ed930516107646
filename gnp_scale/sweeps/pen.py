"""Lines, boxes and words in a picture, by Pillow.

Positions are in pixels of the picture, which is drawn larger by `_SCALE` and then reduced, for smooth lines.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
GRID, FADED = "#e4e4e4", "#9a9a9a"
LINE = 20
"""Height of a line of text."""
_SCALE, _TEXT = 2, 14


class Pen:
    """Draws in a white picture."""

    def __init__(self, width: int, height: int) -> None:
        self.height, self._size = height, (width, height)
        self._picture = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
        self._draw = ImageDraw.Draw(self._picture)
        self._font = ImageFont.load_default(_TEXT * _SCALE)

    def picture(self) -> Image.Image:
        """What has been drawn."""
        return self._picture.resize(self._size, Image.Resampling.LANCZOS)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        """A line through the points."""
        self._draw.line([(x * _SCALE, y * _SCALE) for x, y in points], colour, width * _SCALE)

    def dot(self, place: tuple[float, float], radius: int, colour: str) -> None:
        """A filled circle."""
        self._draw.circle((place[0] * _SCALE, place[1] * _SCALE), radius * _SCALE, colour)

    def box(self, top_left: tuple[float, float], bottom_right: tuple[float, float], colour: str) -> None:
        """A filled rectangle."""
        self._draw.rectangle([(x * _SCALE, y * _SCALE) for x, y in (top_left, bottom_right)], colour)

    def text(self, place: tuple[float, float], text: str, anchor: str) -> None:
        """Black words; `anchor` is Pillow's, such as "lm": `place` is in the middle of their left edge."""
        self._draw.text((place[0] * _SCALE, place[1] * _SCALE), text, "black", self._font, anchor)

    def width(self, text: str) -> float:
        """Pixels that words take."""
        return self._draw.textlength(text, self._font) / _SCALE

    def upward_text(self, centre: tuple[float, float], text: str) -> None:
        """Text that is read from the bottom to the top."""
        line = Image.new("RGB", (int(self._draw.textlength(text, self._font)) + 2, LINE * _SCALE), "white")
        ImageDraw.Draw(line).text((0, line.height / 2), text, "black", self._font, "lm")
        turned = line.rotate(90, expand=True)
        self._picture.paste(
            turned, (int(centre[0] * _SCALE - turned.width / 2), int(centre[1] * _SCALE - turned.height / 2))
        )
