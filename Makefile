# Two commands do everything: `make train` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: setup train test check bench tpu-compiler gpu-compiler lock clean

train: $(READY)  ## run the main job
	$(VENV)/bin/gnp-scale train configs/digits.py:quickstart

test: $(READY)  ## run all tests
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup

check: $(READY)  ## lint, format, type and shell checks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check
	$(VENV)/bin/shellcheck --external-sources .ci/run requirements/lock.sh launch/*/*.sh launch/slurm/*.sbatch

bench: $(READY)  ## time plain, penalised and optax's step side by side
	$(VENV)/bin/python -m benchmarks.train_step

setup: $(READY)  ## make the environment only

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "gnp_scale needs Python 3.12 or newer, and this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@# Every dependency stands in the file, so none needs to be resolved.
	$(VENV)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/dev.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

tpu-compiler: $(READY)  ## the TPU compiler, for tests that compile for TPUs without one
	$(VENV)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/tpu-compiler.txt

gpu-compiler: $(READY)  ## XLA's and Triton's GPU compilers, for tests that compile for GPUs without one (3 GB)
	$(VENV)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/gpu-compiler.txt

lock:  ## resolve requirements/*.txt again (needs uv)
	requirements/lock.sh

clean:
	rm -rf $(VENV)
