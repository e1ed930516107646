"""Pictures of what an evaluation guesses: the confusion matrix, and the images about which it is most wrong.

H rows, W columns and C channels of an image; R rows of a matrix.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnp_scale.config import ConfigError
from gnp_scale.data.dataset import UNREADABLE, Dataset
from gnp_scale.monitoring.confusion import Guesses, NameOf
from gnp_scale.run.streams import one_line, say

_LARGEST_SIDE, _LARGEST_CELL = 1000, 40
"""Pixels of a matrix and of one of its cells. Above 1000 classes, a cell stands for several."""
_CELL_OF_NAME, _CELL_OF_COUNT = 10, 24
"""Pixels of a cell from which its row has a name, and from which it shows its count."""
_NUM_TICKS = 10
_LEGEND = "row: true class, column: first guess"
_CONTRAST, _CONTRAST_OF_DOTS = 0.4, 0.2
"""Exponents of a share, so that a rare confusion is seen, also in a cell of a few pixels."""
_COLOURS = ((255, 255, 255), (107, 174, 214), (8, 48, 107))
"""Of shares from 0 to 1."""
_LONGEST_NAME, _MARGIN = 160, 6
"""Pixels."""
_TEXT, _LINE = 12, 16
"""Pixels of letters and of a line."""
_NUM_WORST, _NUM_COLUMNS, _TILE, _GAP = 16, 4, 128, 4
_CAPTION, _CAPTION_LINE = 20, 24
"""Pixels of letters and lines below an image: large, because TensorBoard shows the picture at half of its size."""

type _Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def matrix_picture(guesses: Guesses, name_of: NameOf) -> np.ndarray:
    """The confusion matrix: a row for each class, a column for each guess, darker for a larger share of the class.

    Up to 100 classes have their names, and up to 41 their counts; more have some numbers of classes at the edges.

    Returns:
        picture (uint8 H x W x 3).
    """
    per_row = -(-guesses.num_classes // _LARGEST_SIDE)
    count_RxR = guesses.counts(per_row)
    num_rows = len(count_RxR)
    cell = min(_LARGEST_CELL, _LARGEST_SIDE // num_rows)
    strength_RxR = count_RxR / np.maximum(count_RxR.sum(axis=1, keepdims=True), 1)
    strength_RxR **= _CONTRAST if cell >= _CELL_OF_NAME else _CONTRAST_OF_DOTS
    matrix = Image.fromarray(_shaded(strength_RxR).repeat(cell, axis=0).repeat(cell, axis=1))
    if cell >= _CELL_OF_COUNT:
        _draw_counts(matrix, count_RxR, strength_RxR, cell)
    if cell >= _CELL_OF_NAME:
        names = {row: name_of(row) for row in range(num_rows)}
    else:
        every = num_rows // _NUM_TICKS
        names = {row: str(row * per_row) for row in range(every, num_rows - every // 2, every)}
    return np.asarray(_framed(matrix, names, cell))


def worst_picture(guesses: Guesses, dataset: Dataset) -> np.ndarray | None:
    """The wrongly guessed images of largest loss, with their class, guess and its probability.

    None if no image is guessed wrongly. Images that cannot be read again are left out, and if the data set itself
    cannot be read, that is said and there is no picture.

    Returns:
        picture (uint8 H x W x 3).
    """
    chosen_B = guesses.worst(_NUM_WORST)
    if not len(chosen_B):
        return None
    try:
        rows = dataset.test.read(chosen_B, None)
    except (ConfigError, OSError) as error:
        say(f"the images that are guessed worst are not shown: {one_line(error)}")
        return None
    tiles = [
        _tile(image, _captions(guesses, place, dataset.class_name))
        for image, label, place in zip(rows["image"], rows["label"], chosen_B.tolist(), strict=True)
        if label != UNREADABLE
    ]
    return _grid(tiles) if tiles else None


def make_folder(folder: Path) -> None:
    """Makes the folder of `write_pictures`.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error


def write_pictures(folder: Path, guesses: Guesses, dataset: Dataset) -> None:
    """Writes `confusion.png` and, if there are wrong guesses, `worst.png` into `folder`, unless the disk refuses.

    Earlier ones are replaced, or removed.
    """
    had_earlier = os.path.lexists(folder / "confusion.png")
    pictures = {
        "confusion.png": matrix_picture(guesses, dataset.class_name),
        "worst.png": worst_picture(guesses, dataset),
    }
    for name, picture in pictures.items():
        try:
            if picture is not None:
                Image.fromarray(picture).save(folder / name)
            elif had_earlier:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            say(f"{folder / name} cannot be written ({error.strerror or error})")


def _shaded(strength_RxR: np.ndarray) -> np.ndarray:
    """uint8 R x R x 3."""
    levels, stops = np.linspace(0, 1, 256), np.linspace(0, 1, len(_COLOURS))
    colour_256x3 = np.stack([np.interp(levels, stops, values) for values in zip(*_COLOURS, strict=True)], axis=1)
    return np.rint(colour_256x3).astype(np.uint8)[np.rint(255 * strength_RxR).astype(np.uint8)]


def _draw_counts(matrix: Image.Image, count_RxR: np.ndarray, strength_RxR: np.ndarray, cell: int) -> None:
    draw = ImageDraw.Draw(matrix)
    for row, column in np.argwhere(count_RxR).tolist():
        colour = "white" if strength_RxR[row, column] > 0.5 else "black"
        place = (column + 0.5) * cell, (row + 0.5) * cell
        draw.text(place, str(count_RxR[row, column]), colour, _font(_TEXT), anchor="mm")


def _framed(matrix: Image.Image, names: dict[int, str], cell: int) -> Image.Image:
    """The matrix with the names of rows at its left, the same at its columns above it, and a legend below it."""
    font = _font(min(cell, _TEXT) if cell >= _CELL_OF_NAME else _TEXT)
    fitted = {row: _fitted(name, _LONGEST_NAME, font) for row, name in names.items()}
    edge = int(max(font.getlength(name) for name in fitted.values())) + 2 * _MARGIN
    size = max(edge + matrix.width, int(_font(_TEXT).getlength(_LEGEND))) + _MARGIN, edge + matrix.height + _LINE
    picture, columns = Image.new("RGB", size, "white"), Image.new("RGB", (edge, matrix.height), "white")
    beside, above = ImageDraw.Draw(picture), ImageDraw.Draw(columns)
    for row, name in fitted.items():
        middle = (row + 0.5) * cell
        beside.text((edge - _MARGIN, edge + middle), name, "black", font, anchor="rm")
        above.text((_MARGIN, middle), name, "black", font, anchor="lm")
    picture.paste(columns.rotate(90, expand=True), (edge, 0))
    picture.paste(matrix, (edge, edge))
    beside.text((_MARGIN, edge + matrix.height), _LEGEND, "black", _font(_TEXT))
    return picture


@cache
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _fitted(text: str, width: float, font: _Font) -> str:
    """`text`, cut if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    cut = next(end for end in range(len(text) - 1, -1, -1) if font.getlength(f"{text[:end]}...") <= width or not end)
    return f"{text[:cut]}..."


def _captions(guesses: Guesses, place: int, name_of: NameOf) -> list[str]:
    """Two lines: the class of an image; the guess and its probability."""
    font = _font(_CAPTION)
    end = f", {guesses.confidence[place]:.0%}"
    guess = _fitted(f"-> {name_of(int(guesses.guess[place]))}", _TILE - font.getlength(end), font)
    return [_fitted(name_of(int(guesses.label[place])), _TILE, font), guess + end]


def _tile(image_HxWxC: np.ndarray, captions: list[str]) -> Image.Image:
    """An image, enlarged by an integer factor or reduced to the size of a tile, above its captions."""
    height, width, channels = image_HxWxC.shape
    image = Image.fromarray(image_HxWxC if channels == 3 else image_HxWxC.repeat(3, axis=2))
    if factor := _TILE // max(height, width):
        image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    else:
        image.thumbnail((_TILE, _TILE), Image.Resampling.BICUBIC)
    tile = Image.new("RGB", (_TILE, _TILE + _CAPTION_LINE * len(captions)), "white")
    tile.paste(image, ((_TILE - image.width) // 2, (_TILE - image.height) // 2))
    draw = ImageDraw.Draw(tile)
    for number, caption in enumerate(captions):
        draw.text((0, _TILE + _CAPTION_LINE * number), caption, "black", _font(_CAPTION))
    return tile


def _grid(tiles: list[Image.Image]) -> np.ndarray:
    width, height = tiles[0].width + _GAP, tiles[0].height + _GAP
    num_rows = -(-len(tiles) // _NUM_COLUMNS)
    grid = Image.new("RGB", (min(len(tiles), _NUM_COLUMNS) * width, num_rows * height), "white")
    for number, tile in enumerate(tiles):
        grid.paste(tile, (number % _NUM_COLUMNS * width, number // _NUM_COLUMNS * height))
    return np.asarray(grid)
