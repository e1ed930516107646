"""`benchmarks/gpu_check.sh` runs with tiny sizes on any machine, and says when a part of it fails."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("unoptimized")

ROOT = Path(__file__).parent.parent


def check(out, *parts):
    env = os.environ | {"GPU_CHECK_TINY": "1", "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "OUT": str(out)}
    command = ["bash", "benchmarks/gpu_check.sh", *parts]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_part_without_pytorch_runs(tmp_path):
    done = check(tmp_path, "bench", "resume", "ceilings", "kernels", "steps_bfloat16")
    report = (tmp_path / "report.txt").read_text()
    assert (done.returncode, report) == (0, done.stdout), report
    assert "exit codes [0, -9, 0]" in report
    assert "bitwise equal: True" in report
    for row in ("| vit_b | adamw bf16 |", "| resnet50 | bfloat16 | xla | penalised |"):
        assert row in report
    with tarfile.open(tmp_path / "logs.tgz") as logs:
        names = ("steps_bfloat16.txt", "steps_bfloat16.err", "vit_b-bfloat16-xla-plain.txt", "killed.log")
        assert {f"./{name}" for name in names} <= set(logs.getnames())


def test_a_part_that_fails_is_the_exit_code(tmp_path):
    """PyTorch is not a dependency."""
    done = check(tmp_path, "torch")
    assert done.returncode == 1
    assert "== torch: exit 1" in done.stdout
    assert "No module named 'timm'" in done.stdout
