"""Pictures: the loss in a plane, the path of a run, accuracy by severity, and an image with each corruption.

A steps along each direction of the plane.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnp_scale.data.dataset import UNREADABLE, Dataset
from gnp_scale.sharpness import corruptions
from gnp_scale.sharpness.corruptions import SEVERITIES
from gnp_scale.sharpness.line import Line
from gnp_scale.sharpness.robustness import keys
from gnp_scale.sharpness.trajectory import Trajectory
from gnp_scale.sweeps.chart import Chart, Mark, draw

_SIDE, _EDGE, _BAR, _TEXT, _TILE = 440, 60, 24, 14, 96
"""Pixels: of the plane, around it, of the bar of its colours, of letters, of an image."""
_NUM_BANDS, _NUM_WORDS = 24, 5
_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
"""From the lowest to the highest loss."""


def plane_picture(loss_AxA: np.ndarray) -> np.ndarray:
    """The losses as bands of colours, with equal ratios of losses if they are positive; a dot marks the network.

    The first direction is to the right, the second upwards; both from -1 to 1.

    Returns:
        picture (uint8 H x W x 3).
    """
    return np.asarray(_landscape(loss_AxA, np.array([[-1.0, 1.0]] * 2), np.zeros((1, 2)), {}))


def trajectory_picture(found: Trajectory) -> np.ndarray:
    """The losses of the plane as in `plane_picture`, and the path through the checkpoints (uint8 H x W x 3)."""
    words = {number: f"step {found.steps[number]}" for number in (0, -1)}
    return np.asarray(_landscape(found.plane, found.ticks[:, [0, -1]], found.places, words))


def _landscape(
    loss_AxA: np.ndarray, ends_2x2: np.ndarray, places_Tx2: np.ndarray, words: Mapping[int, str]
) -> Image.Image:
    """Losses between both ends of each direction, and dots at some places, joined; `words` beside some of them."""
    highest = np.max(loss_AxA[np.isfinite(loss_AxA)], initial=0.0)
    loss_AxA = np.where(np.isfinite(loss_AxA), loss_AxA, highest)
    low, high = float(loss_AxA.min()), float(max(loss_AxA.max(), loss_AxA.min() * (1 + 1e-6)))
    is_log = low > 0
    scaled_AxA = np.log(loss_AxA / low) / np.log(high / low) if is_log else (loss_AxA - low) / max(high - low, 1e-30)
    picture = Image.new("RGB", (_SIDE + 2 * _EDGE + _BAR + 60, _SIDE + 2 * _EDGE), "white")
    picture.paste(Image.fromarray(_coloured(_enlarged(scaled_AxA)[::-1])), (_EDGE, _EDGE))
    bar = np.linspace(1, 0, _SIDE)[:, None].repeat(_BAR, axis=1)
    picture.paste(Image.fromarray(_coloured(bar)), (_EDGE + _SIDE + 20, _EDGE))
    shares = np.linspace(0, 1, _NUM_WORDS)
    losses = low * (high / low) ** shares if is_log else low + (high - low) * shares
    _draw_words(picture, dict(zip(shares.tolist(), losses.tolist(), strict=True)), ends_2x2)
    shares_Tx2 = (places_Tx2 - ends_2x2[:, 0]) / (ends_2x2[:, 1] - ends_2x2[:, 0])
    _draw_path(picture, _EDGE + _SIDE * np.abs([0, 1] - shares_Tx2), words)
    return picture


def accuracy_picture(scores: Mapping[str, float]) -> np.ndarray:
    """Lines of the accuracy by severity, from `robustness/*` (uint8 H x W x 3)."""
    lines = {
        kind.replace("_", " "): [
            Mark(severity, top1, None, (top1,))
            for severity in SEVERITIES
            for top1 in [scores[f"robustness/{kind}_{severity}" if severity else "robustness/top1"]]
        ]
        for kind in corruptions.KINDS
    }
    ticks = {float(severity): str(severity) for severity in SEVERITIES}
    return np.asarray(draw(Chart("severity", "top-1 accuracy", lines, ticks, is_log=False, joins=True)))


def line_picture(line: Line) -> np.ndarray:
    """The loss above, the accuracy below, both by the step along the line (uint8 H x W x 3)."""
    ticks = {float(step): f"{step:g}" for step in line.steps if step % 0.25 == 0}

    def chart(label: str, values: np.ndarray, *, are_shares: bool) -> np.ndarray:
        pairs = zip(line.steps.tolist(), values.tolist(), strict=True)
        marks = [Mark(step, value, None, (value,)) for step, value in pairs if np.isfinite(value)]
        words = "step from RUN (0) to the other run (1)"
        return np.asarray(
            draw(Chart(words, label, {"": marks}, ticks, is_log=False, joins=True, are_shares=are_shares))
        )

    charts = [chart("loss", line.losses, are_shares=False), chart("top-1 accuracy", line.top1, are_shares=True)]
    return np.concatenate(charts)


def corrupted_examples(dataset: Dataset, seed: int) -> np.ndarray | None:
    """The first evaluated image: a row for each kind of corruption, a column for each severity (uint8 H x W x 3).

    None if it cannot be used.
    """
    rows = dataset.test.read(np.zeros(1, np.int64), None)
    if rows["label"][0] == UNREADABLE:
        return None
    return np.concatenate([_row(rows["image"], seed, *entry) for entry in enumerate(corruptions.KINDS)])


def _row(image_1xHxWxC: np.ndarray, seed: int, number: int, kind: str) -> np.ndarray:
    @jax.jit
    def all_severities(image: jax.Array) -> jax.Array:
        key = keys(seed, jnp.zeros(1, jnp.int32), number)
        return jax.lax.map(lambda severity: corruptions.corrupt(kind, image, severity, key), jnp.array(SEVERITIES))

    tiles = [_tile(image[0]) for image in np.asarray(all_severities(image_1xHxWxC))]
    return np.concatenate(tiles, axis=1)


def _tile(image_HxWxC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(image_HxWxC if image_HxWxC.shape[2] == 3 else image_HxWxC.repeat(3, axis=2))
    return np.asarray(image.resize((_TILE, _TILE), Image.Resampling.NEAREST))


def _enlarged(x_AxA: np.ndarray) -> np.ndarray:
    """Linear between the places of `x`, which reach from one edge of the picture to the other."""
    place, fine = np.linspace(0, 1, len(x_AxA)), np.linspace(0, 1, _SIDE)
    weight = np.stack([np.interp(fine, place, row) for row in np.eye(len(x_AxA))], axis=1)
    return weight @ x_AxA @ weight.T


def _coloured(share: np.ndarray) -> np.ndarray:
    """Colours (uint8, with a further dimension of 3) of shares in [0, 1], in bands."""
    band = np.minimum(np.floor(share * _NUM_BANDS), _NUM_BANDS - 1) / (_NUM_BANDS - 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.rint(np.interp(band, stops, values)) for values in _COLOURS.T], axis=-1).astype(np.uint8)


def _draw_words(picture: Image.Image, losses: Mapping[float, float], ends_2x2: np.ndarray) -> None:
    """Writes the ends and the middle of both axes, and the losses of the bar."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT)
    for share in (0.0, 0.5, 1.0):
        words, place = [f"{low + share * (high - low):.3g}" for low, high in ends_2x2], _EDGE + share * _SIDE
        pen.text((place, _EDGE + _SIDE + 6), words[0], "black", font, anchor="mt")
        pen.text((_EDGE - 8, 2 * _EDGE + _SIDE - place), words[1], "black", font, anchor="rm")
    middle = _EDGE + _SIDE / 2
    pen.text((middle, _EDGE + _SIDE + 28), "first direction (right), second (up)", "black", font, anchor="mt")
    pen.text((_EDGE + _SIDE + 20, _EDGE - 10), "loss", "black", font, anchor="lb")
    for share, loss in losses.items():
        place = _EDGE + _SIDE + 26 + _BAR, _EDGE + (1 - share) * _SIDE
        pen.text(place, f"{loss:.3g}", "black", font, anchor="lm")


def _draw_path(picture: Image.Image, pixels_Tx2: np.ndarray, words: Mapping[int, str]) -> None:
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT)
    places = [(float(x), float(y)) for x, y in pixels_Tx2]
    pen.line(places, "white", 2)
    for place in places:
        pen.circle(place, 3, "white", "black")
    for number, word in words.items():
        x, y = places[number]
        pen.text((x, y - 8), word, "white", font, anchor="mb", stroke_width=1, stroke_fill="black")
