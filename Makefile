# Two commands do everything: `make train` runs the main job, `make test` runs the quick tests.

VENV := .venv
READY := $(VENV)/.ready
# The files list every dependency, so none needs to be resolved. Python compiles a small part of it: what a run imports.
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-compile
# Else each process compiles it again, for eight seconds.
unexport PYTHONDONTWRITEBYTECODE
# One process runs a whole file, so that shared fixtures are made once. If one dies, the others would wait for its tests.
PYTEST := $(VENV)/bin/python -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: setup train test test-all check docs bench bench-peers tpu-compiler gpu-compiler optional lock clean

train: $(READY)  ## run the main job
	$(VENV)/bin/gnp-scale train configs/digits.py:quickstart

test: $(READY)  ## run the quick tests
	$(PYTEST) -n 2

# Many of them wait for a deadline, for Slurm, or for processes that they stop: so one more than cores.
test-all: $(READY)  ## run all tests, also those that start runs, kill processes, use Slurm, or compile for TPUs and GPUs
	$(PYTEST) -n 3 -m 'not long' --durations=150 --durations-min=5

check: $(READY)  ## lint, format, type and shell checks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check
	$(VENV)/bin/shellcheck --external-sources .ci/run requirements/*.sh launch/*/*.sh launch/slurm/*.sbatch benchmarks/*.sh

# Its packages are installed when they change.
$(VENV)/.docs: $(READY) requirements/docs.txt
	$(INSTALL) --require-hashes -r requirements/docs.txt
	@touch $@

docs: $(VENV)/.docs  ## build the documentation site into docs/_build; a broken link is an error
	$(VENV)/bin/python -m sphinx --fresh-env --quiet --fail-on-warning --keep-going --conf-dir docs . docs/_build
	@echo "Open docs/_build/index.html"

bench: $(READY)  ## time plain, penalised and optax's step side by side
	$(VENV)/bin/python -m benchmarks.train_step

bench-peers: $(READY)  ## compare the steps with Flax Linen's (by compilers and by the clock) and PyTorch's (TORCH_PYTHON=...)
	$(VENV)/bin/python -m benchmarks.peers $(if $(TORCH_PYTHON),--torch-python $(TORCH_PYTHON))

setup: $(READY)  ## make the environment only

$(READY): requirements/dev.txt pyproject.toml
	@python=$$(sh requirements/find_python.sh "$(PYTHON)") && echo "Making an environment in $(VENV)" && "$$python" -m venv --clear $(VENV)
	@echo "Installing the packages of requirements/dev.txt (about 85, 370 MB to download, 1.4 GB on disk): one to three minutes"
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@echo "Installing gnp_scale itself, in place"
	$(INSTALL) --editable .
	$(VENV)/bin/python -c "import gnp_scale.loop"
	@touch $@

tpu-compiler: $(READY)  ## the TPU compiler, for tests that compile for TPUs without one
	$(INSTALL) --require-hashes -r requirements/tpu-compiler.txt

gpu-compiler: $(READY)  ## XLA's and Triton's GPU compilers and cuDNN, for tests that compile for GPUs without one (5 GB)
	$(INSTALL) --require-hashes -r requirements/gpu-compiler.txt

optional: $(READY)  ## gs://, s3:// and Parquet, and what their tests need
	$(INSTALL) --require-hashes -r requirements/optional.txt

lock:  ## resolve requirements/*.txt again (needs uv)
	requirements/lock.sh

clean:
	rm -rf $(VENV) docs/_build
