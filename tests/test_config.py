"""Mistakes in a configuration are one line that names what was given and what to change; nothing is guessed."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.rundir import claimed, stored_config

WRONG_FLAGS = {
    "misspelt key": ("--data.batchsize 64", "did you mean --data.batch-size"),
    "misspelt section": ("--dta.batch-size 64", "did you mean --data.batch-size"),
    "nothing like it": ("--zzz 1", "there is no option --zzz"),
    "wrong type": ("--data.batch-size many", "--data.batch-size"),
    "missing value": ("--data.batch-size", "--data.batch-size"),
    "misspelt choice": ("--gnp.r-schedule warm-up", "'warmup'"),
    "out of range": ("--gnp.r -1", "gnp.r is -1.0"),
    "fits the rest badly": ("--optim.warmup-steps 2000", "train.num_steps 1000"),
    "both strengths": ("--gnp.lam 0.1", "give one of them"),
    "stray word": ("fast", "fast"),
}


@pytest.mark.parametrize(("flags", "part"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_a_wrong_flag_is_one_line_that_says_what_to_change(flags, part):
    with pytest.raises(ConfigError) as error:
        recipe.override(Config(), flags.split())
    message = str(error.value)
    assert part in message
    assert "\n" not in message
    assert "│" not in message


def test_flags_replace_values_and_nothing_else():
    flags = "--gnp.alpha None --gnp.lam 0.04 --data.flip --optim.step-boundaries 0.5 0.9 --data.batch_size 64"
    config = recipe.override(Config(), flags.split())
    assert config == Config(
        data=DataConfig(flip=True, batch_size=64),
        gnp=GnpConfig(alpha=None, lam=0.04),
        optim=OptimConfig(step_boundaries=(0.5, 0.9)),
    )


WRONG_VALUES = {
    "zero batch": (DataConfig, {"batch_size": 0}),
    "two mixings": (DataConfig, {"mixup": 0.2, "cutmix": 1.0}),
    "certain dropout": (ModelConfig, {"dropout": 1.0}),
    "no strength": (GnpConfig, {"alpha": None}),
    "warm-up without steps": (GnpConfig, {"r_schedule": "warmup"}),
    "steps without warm-up": (GnpConfig, {"warmup_steps": 5}),
    "boundaries out of order": (OptimConfig, {"schedule": "step", "step_boundaries": (0.6, 0.3)}),
    "smoothing everything": (TrainConfig, {"label_smoothing": 1.0}),
}


@pytest.mark.parametrize(("section", "values"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_impossible_values_are_refused(section, values):
    with pytest.raises(ConfigError):
        section(**values)


@given(
    st.builds(DataConfig, batch_size=st.integers(1, 10**6), flip=st.booleans()),
    st.builds(GnpConfig, r=st.floats(0, 1), alpha=st.floats(0, 1)),
)
def test_json_keeps_every_value(data, gnp):
    config = Config(data=data, gnp=gnp)
    assert recipe.from_json(recipe.to_json(config)) == config


def test_a_stored_configuration_of_another_version_is_refused():
    text = recipe.to_json(Config()).replace('"batch_size"', '"batch"')
    with pytest.raises(ConfigError, match="does not fit this version"):
        recipe.from_json(text)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("configs/digits.py", "file.py:function"),
        ("configs/nothing.py:run", "does not exist"),
        ("configs/digits.py:quikstart", "did you mean quickstart"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(name, part):
    with pytest.raises(ConfigError, match=part):
        recipe.load(name)


def test_a_recipe_that_fails_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nonexistent_module_for_test\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        recipe.load(f"{broken}:run")


def test_a_run_folder_refuses_another_run_but_not_another_machine(tmp_path):
    with claimed(tmp_path, Config()):
        pass
    elsewhere = recipe.override(Config(), ["--mesh.tensor", "2", "--checkpoint.keep-last", "5"])
    with claimed(tmp_path, elsewhere):
        assert stored_config(tmp_path) == elsewhere
    another = dataclasses.replace(Config(), gnp=GnpConfig(r=0.1))
    with pytest.raises(ConfigError, match=r"gnp.r 0.05 -> 0.1"), claimed(tmp_path, another):
        pass
    assert stored_config(tmp_path) == elsewhere


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        stored_config(tmp_path)
