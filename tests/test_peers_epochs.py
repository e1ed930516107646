"""`python -m benchmarks.peers.epochs` compares whole epochs of the same training, and writes its table."""

import re
import sys
import time
from pathlib import Path

import pytest

from benchmarks import timing
from benchmarks.peers import epoch_ours, epochs
from benchmarks.peers.epoch_setting import Setting
from benchmarks.workers import Worker

pytestmark = pytest.mark.usefixtures("unoptimized")

TINY = ["--data", "digits", "--num-examples", "64", "--batch-size", "16", "--width", "24", "--depth", "1"]


@pytest.mark.long
def test_the_whole_comparison_runs_tiny_without_pytorch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["epochs", *TINY, "--rounds", "2"])
    epochs.main()
    (report,) = tmp_path.iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-epochs.md", report.name)
    text = report.read_text()
    assert "digits: 64 images in 4 steps" in text
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| p")]
    assert [cell[:2] for cell in cells] == [
        *(["plain", title] for title in ("ours", *epochs.PEERS["plain"])),
        *(["penalised", title] for title in ("ours, penalised", *epochs.PEERS["penalised"])),
    ]
    ran = [cell for cell in cells if "PyTorch" not in cell[1]]
    assert [cell[2] for cell in cells if cell not in ran] == ["not run", "not run"]
    for cell in ran:
        assert float(cell[2]) > 0
        assert 100 < float(cell[4]) < 10_000
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("round")] == [
        *["round 1"] * 5,
        *["round 2"] * 5,
    ]


def test_an_epoch_of_too_few_steps_is_refused(monkeypatch):
    """Its warm-up would not fit into it."""
    monkeypatch.setattr(sys, "argv", ["epochs", *TINY, "--batch-size", "32"])
    with pytest.raises(SystemExit, match="an epoch has 2 steps: give at least 3"):
        epochs.main()


def test_the_run_has_the_optimizer_of_its_peers():
    """Optax's AdamW and PyTorch's decay every parameter, and nothing else happens to gradients or images."""
    sizes = (8, 1, 10, (0.3,), (0.4,))
    vit = epoch_ours.config(Setting("digits", 64, 16, *sizes, "vit", 2, 1, 24, 1), "penalised")
    assert (vit.optim.name, vit.optim.schedule, vit.optim.decay_norm_and_bias) == ("adamw", "constant", True)
    assert (vit.optim.weight_decay, vit.gnp.r, vit.gnp.alpha) == (0.1, 0.05, 1.0)
    resnet = epoch_ours.config(Setting("digits", 64, 16, *sizes, "resnet18", 2, 1, 24, 1), "plain")
    assert (resnet.optim.name, resnet.optim.weight_decay, resnet.gnp.alpha) == ("sgd", 0.0, 0.0)
    for config in (vit, resnet):
        assert config.optim.clip_norm is None
        assert (config.data.flip, config.data.crop_padding, config.data.mixup) == (False, 0, 0.0)


def test_a_process_that_fails_shows_its_last_words():
    worker = Worker([sys.executable, "-c", "raise SystemExit('no such network')"], 1)
    with pytest.raises(RuntimeError, match=r"has ended:\nno such network"):
        worker.get_ready()
    worker.close()


def test_a_process_answers_and_is_stopped_in_between():
    code = "import sys; print('ready', flush=True); [print(2 * int(x), flush=True) for x in sys.stdin]"
    worker = Worker([sys.executable, "-c", code], 1)
    try:
        worker.get_ready()
        assert [worker.ask(text).answer for text in ("3", "4")] == ["6", "8"]
        assert worker.peak_bytes > 1e6
        state = Path(f"/proc/{worker._process.pid}/stat")
        deadline_s = time.monotonic() + 60
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline_s
    finally:
        worker.close()
