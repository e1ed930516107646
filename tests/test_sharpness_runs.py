"""`gnp-scale sharpness` from end to end: what it prints and writes for a run, in one process and in two."""

import importlib.util
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from launcher import run
from PIL import Image

from gnp_scale.config import CheckpointConfig, Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.evaluation.existing import evaluate_run
from gnp_scale.loop import train
from gnp_scale.sharpness import report
from gnp_scale.sharpness.measure import Report, measure_run
from gnp_scale.sharpness.settings import Settings

pytestmark = pytest.mark.usefixtures("unoptimized")

HAS_MATFREE = importlib.util.find_spec("matfree") is not None
MEASURES = ("rise", *(["spectrum"] if HAS_MATFREE else []), "corruptions", "rounding")
CONFIG = Config(
    data=DataConfig("synthetic", synthetic_num_examples=200, synthetic_image_size=8, batch_size=32, eval_batch_size=32),
    model=ModelConfig("vit_mu", patch_size=4, depth=1, width=32, num_heads=2, dtype="bfloat16"),
    optim=OptimConfig("sgd", learning_rate=0.05, frozen=("embed/*",)),
    mesh=MeshConfig(replica=1, fsdp=8, tensor=1),
    train=TrainConfig(num_steps=6, log_every_steps=6, eval_every_steps=6, loss="bce", ema_decay=0.5),
    checkpoint=CheckpointConfig(every_steps=3, keep_last=2),
)
OF_RISE = "--radii 0.05,0.5 --group 12"
OF_SPECTRUM = (2, 4, 2) if HAS_MATFREE else ()
OF_SPECTRUM_FLAGS = "--eigenvalues 2 --lanczos-steps 4 --vectors 2" if HAS_MATFREE else ""


def made_up(settings):
    """A report with all scores."""
    names = ["sharpness/num_examples", "sharpness/loss", "sharpness/grad_norm", "sharpness/trace"]
    names += ["sharpness/trace_error", "sharpness/eigenvalue_lowest", "robustness/top1"]
    names += [f"robustness/{bits}_bits" for bits in (8, 4)]
    names += [f"sharpness/eigenvalue_{n}{end}" for n in range(1, 6) for end in ("", "_bound")]
    names += [f"sharpness/rise_{r:g}{end}" for r in settings.radii for end in ("", "_m32", "_m32_error")]
    kinds = ("gaussian_noise", "blur", "contrast", "brightness", "pixelate")
    names += [f"robustness/{kind}_{severity}" for kind in kinds for severity in range(1, 6)]
    steps = np.linspace(-1, 1, 3)
    return Report(7, dict.fromkeys(names, 0.25), steps, np.array([[1.0, 2, 9], [1, 0.5, np.inf], [1, 2, np.nan]]))


def test_a_report_is_written_as_lines_numbers_and_pictures(tmp_path):
    """Also if the loss overflows at some place of the plane: JSON has no infinity. Earlier pictures go."""
    (tmp_path / "sharpness.json").write_text("{}")
    (tmp_path / "line.png").write_text("of an earlier measurement")
    settings = Settings()
    lines = "\n".join(report.lines(made_up(settings), settings))
    for words in ("step 7", r"r 0.01 +r 0.05 +r 0.1\n", "groups of 32 +0.25", r"4 bits +25.00%", r"blur( +25.00%){5}"):
        assert re.search(words, lines), words
    report.write(tmp_path, "runs/a", made_up(settings), settings)
    found = json.loads((tmp_path / "sharpness.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert found["plane"]["loss"] == [[1, 2, 9], [1, 0.5, None], [1, 2, None]]
    assert found["settings"]["radii"] == [0.01, 0.05, 0.1]
    assert {path.name for path in tmp_path.glob("*.png")} == {"plane.png", "accuracy.png"}
    assert len(list(tmp_path.glob("events.*"))) == 1
    plane = np.asarray(Image.open(tmp_path / "plane.png"))
    # The lowest loss is in the middle, the highest at the right: the first direction.
    assert plane[plane.shape[0] // 2, 290].sum() < plane[plane.shape[0] // 2, 495].sum()


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        pytest.param(Settings(["rise"], 40, (0.05, 0.5), 12), OF_RISE, marks=pytest.mark.long, id="rise"),
        pytest.param(
            Settings(MEASURES, 40, (0.05, 0.5), 12, *OF_SPECTRUM),
            f"{OF_RISE} {OF_SPECTRUM_FLAGS}",
            marks=pytest.mark.long,
            id="all",
        ),
    ],
)
def test_a_run_is_measured_in_two_processes_as_in_one(settings, flags, tmp_path):
    """A network in bfloat16 with frozen parameters and a moving average, which is what is measured; an average of
    checkpoints; groups that the devices cannot share equally. The run's folder stays as it is.
    """
    folder = tmp_path / "run"
    train(CONFIG, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    here = measure_run(replace(CONFIG, mesh=MeshConfig(2, 2, 2)), folder, settings, None, 2)
    options = ["--measure", ",".join(settings.measures), "--examples", "40", *flags.split(), "--average", "2"]
    options += ["--output", str(tmp_path / "found"), "--mesh.fsdp", "2"]
    run(tmp_path, "sharpness", str(folder), *options, num_processes=2, num_devices=2)
    found = json.loads((tmp_path / "found" / "sharpness.json").read_text())
    assert (found["step"], here.step) == (6, 6)
    assert found["scores"].keys() == here.scores.keys()
    for name, value in here.scores.items():
        # Rounding to bfloat16 may move images across a border, and the loss is computed in float32.
        tolerance = {"atol": 0.041} if name.startswith("robustness") else {"rtol": 2e-3, "atol": 1e-5}
        np.testing.assert_allclose(found["scores"][name], value, err_msg=name, **tolerance)
    if "corruptions" in settings.measures:
        top1 = evaluate_run(CONFIG, folder, num_averaged=2)[1]["eval/top1"]
        np.testing.assert_allclose(here.scores["robustness/top1"], top1, rtol=1e-6)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
