"""The wheel has every module and recipe but no helpers of tests, and runs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gnp_scale").rglob("*.py")}
    expected |= {
        path.relative_to(ROOT / "kernels").as_posix()
        for path in (ROOT / "kernels" / "gnp_kernels").rglob("*.py")
        if path.name not in ("cases.py", "testing.py")
    }
    expected |= {f"gnp_scale/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")} == expected


@pytest.mark.slow
def test_the_wheel_trains_its_recipe_outside_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "gnp_scale.cli", "train", "configs/digits.py:quickstart"]
    command += ["--train.num-steps", "3", "--optim.warmup-steps", "1", "--model.depth", "1"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits-quickstart" / "metrics.jsonl").is_file()
