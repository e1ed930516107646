"""TensorBoard as a person sees it: a browser draws its page, and the test looks at the picture."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tensorboard_server import Server

from gnp_scale.monitoring.metrics import MetricWriter
from gnp_scale.monitoring.tensorboard import CHARTS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LINE = (255, 112, 67)
"""The colour of the first run."""
WIDTH, HEIGHT, LEFT = 1120, 2600, 290
"""Pixels; two charts are side by side, on the right of `LEFT`."""
DEADLINE_S = 100


def screenshot(url, path):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=30000", f"--screenshot={path}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    return np.asarray(Image.open(path).convert("RGB"))


def bands(is_drawn):
    """The number of groups of drawn rows, with 100 empty ones between two groups."""
    rows = np.flatnonzero(is_drawn.any(axis=1))
    return int(np.sum(np.diff(rows) > 100)) + bool(len(rows))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
def test_each_chart_of_the_penalty_has_a_line(tmp_path):
    tags = [tag for titles in CHARTS.values() for tag in titles.values()]
    with MetricWriter(tmp_path / "runs" / "a", is_writer=True, start_step=0) as writer:
        for step in range(1, 30):
            writer.write(step, {tag: step % 7 + number for number, tag in enumerate(tags)})
    server = Server(tmp_path / "runs", tmp_path / "log", "true")
    try:
        server.start()
        server.until(lambda: tags[-1] in server.json("scalars/tags").get("a", ()), tags[-1])
        picture = screenshot(f"{server.url}/#custom_scalars", tmp_path / "page.png")
    finally:
        server.close()
    is_line = (np.abs(picture[:, LEFT:].astype(int) - np.array(LINE)[None, None]) < 12).all(axis=2)
    middle = is_line.shape[1] // 2 - 40
    numbers = [len(titles) for titles in CHARTS.values()]
    assert bands(is_line[:, :middle]) == sum(-(-number // 2) for number in numbers), "on the left"
    assert bands(is_line[:, middle:]) == sum(number // 2 for number in numbers), "on the right"
