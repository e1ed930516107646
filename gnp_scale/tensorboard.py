"""TensorBoard event files of a run: scalars, the configuration, example images and the charts of the penalty."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from gnp_scale import recipe
from gnp_scale.config import Config

# Charts of the CUSTOM SCALARS tab and the metrics drawn together in each.
CHARTS = {
    "loss: clean and perturbed": ("train/loss", "train/loss_perturbed"),
    "gradient norms": ("gnp/grad_norm", "gnp/grad_norm_perturbed", "gnp/update_grad_norm"),
    "cosine of the two gradients": ("gnp/cosine",),
    "curvature along the gradient": ("gnp/curvature",),
    "r, alpha, lambda": ("gnp/r", "gnp/alpha", "gnp/lambda"),
}
_SMALLEST_SIDE = 128  # pixels at which a single image can be recognised on a screen
_MAX_IMAGES = 16
_FLUSH_S = 1  # the seconds of points that a killed process may lose here; metrics.jsonl loses none


class TensorBoard:
    """Writes event files into `run_dir`.

    After a restart at `start_step`, TensorBoard replaces the points of later steps by those written now. (Its fast
    loader does so name by name: old points of `eval/*` stay in sight until the next evaluation.)
    """

    def __init__(self, run_dir: Path, start_step: int) -> None:
        # tensorboardX names a file by host and second, and overwrites the one of a restart within that second.
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(
            str(run_dir), purge_step=start_step + 1, flush_secs=_FLUSH_S, filename_suffix=suffix
        )
        charts = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in CHARTS.items()}
        self._writer.add_custom_scalars({"penalty on the gradient norm": charts})

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one point to the chart of each name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def config(self, config: Config) -> None:
        """Shows the configuration in the TEXT tab, and in HPARAMS beside the run's `eval/top1`."""
        self._writer.add_text("config", f"```json\n{recipe.to_json(config)}\n```")
        values = {
            key: str(value) if isinstance(value, tuple) else value
            for key, value in recipe.flatten(config).items()
            if value is not None
        }
        # SummaryWriter.add_hparams would write a second run, in a folder named by the time.
        experiment, session, _ = hparams(values, {"eval/top1": 0.0})
        events = self._writer.file_writer
        assert events is not None
        events.add_summary(experiment)
        events.add_summary(session)

    def images(
        self, step: int, name: str, image_BxHxWxC: np.ndarray, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Shows the first images of a normalised batch, `(pixel / 255 - mean) / std` with a value for each channel."""
        grid_BxHxWxC = visible(image_BxHxWxC[:_MAX_IMAGES], mean, std)
        self._writer.add_images(name, grid_BxHxWxC, step, dataformats="NHWC")

    def close(self) -> None:
        """Writes what is still queued."""
        self._writer.close()


def visible(image_BxHxWxC: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images as uint8 pixels, enlarged by a whole factor (nearest neighbour) if they are small."""
    channel_shape = (1, 1, 1, -1)
    pixel_BxHxWxC = image_BxHxWxC * np.reshape(std, channel_shape) + np.reshape(mean, channel_shape)
    pixel_BxHxWxC = np.rint(255 * np.clip(pixel_BxHxWxC, 0, 1)).astype(np.uint8)
    factor = -(-_SMALLEST_SIDE // min(image_BxHxWxC.shape[1:3]))
    return pixel_BxHxWxC.repeat(factor, axis=1).repeat(factor, axis=2)
