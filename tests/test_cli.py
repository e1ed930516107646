"""The command line as a user meets it: real processes, real signals, exit codes, and one line for a mistake."""

import dataclasses
import json
import re
import signal

import jax
import numpy as np
import pytest
from launcher import NUM_SHORT_STEPS, SHORT, Job, run
from test_confusion import shown_values

from gnp_scale import __version__, recipe
from gnp_scale.checkpoint import fingerprint
from gnp_scale.cli import _parser, main
from gnp_scale.config import Config
from gnp_scale.monitoring.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("unoptimized")

RECIPE = "configs/digits.py:quickstart"
NUM_DEVICES = 4
"""With more, the threads of two processes wait for each other on few cores, and a step takes several times as long."""

MISTAKES = {
    "misspelt key": (("--gnp.alpa", "1"), "did you mean --gnp.alpha?"),
    "missing data set": (("--data.name", "cifar10"), "gnp-scale data download cifar10"),
    "batch not divisible": (("--data.batch-size", "30"), "divisible by the 8 devices"),
    "impossible mesh": (("--mesh.fsdp", "4", "--mesh.tensor", "2"), "does not fit 7 devices"),
    "part of no whole examples": (("--gnp.ascent-fraction", "0.3"), "1/10 of the 128 examples"),
    "flag before its value": (("--train.num-steps",), "--train.num-steps"),
    "heads over tensor": (("--mesh.fsdp", "1", "--mesh.tensor", "8"), "attention heads"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "part"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(flags, part, tmp_path):
    num_devices = 7 if "7 devices" in part else 8
    job = Job(tmp_path, ["train", RECIPE, "--run-dir", str(tmp_path / "run"), *flags], num_devices=num_devices)
    assert job.exit_codes() == [2]
    (line,) = job.output().splitlines()
    assert line.startswith("gnp-scale: ")
    assert part in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["eval", "README.md"], "holds no run"),
        (["fingerprint", "README.md"], "holds no checkpoints"),
        (["fingerprint", "runs", "--step", "x"], "invalid int value"),
        (["eval", "runs", "--optim.name", "lion"], "eval has no option --optim.name"),
        (["data", "download", "imagenet"], "imagenet"),
        (["train"], "needs a recipe"),
        (["trian"], "there is no COMMAND trian: did you mean train?"),
        (["data", "donwload"], "did you mean download?"),
        ([], "COMMAND"),
        (["status", RECIPE], "is a recipe: give the folder of its run"),
        (["fingerprint", RECIPE], "is a recipe: give the folder of its run"),
        (["eval", "hdfs://bucket/run"], "RUN is hdfs://bucket/run"),
        (["train", RECIPE, "--run-dir", "hdfs://bucket/run"], "give a path, gs:// or s3://"),
        (["train", RECIPE, "--run-dir="], "--run-dir is empty"),
        (["train", "--gnp.r", "0.1", RECIPE], "the recipe comes first"),
        (["train", "runs/digits"], "names no function"),
        (["data", "download", "cifar10", "--root", "s3://bucket"], "mount the bucket"),
        (["drill", RECIPE, "--seed", "-1"], "argument --seed: -1 is less than 0"),
        (["drill", RECIPE, "--num-kills", "0"], "argument --num-kills: 0 is less than 1"),
        (["drill", RECIPE, "--num-processes", "1", "0"], "argument --num-processes: 0 is less than 1"),
        (["drill", RECIPE, "--num-devices", "-4"], "argument --num-devices: -4 is less than 1"),
        (["drill", "configs/digits.py"], "names no function"),
        (["drill", RECIPE, "--num-processes", "3"], "4 devices do not divide over 3 processes: give --num-devices"),
        (["drill", RECIPE, "--num-processes", "2", "1", "2"], "--num-processes has 2 twice: give each number once"),
        (["sharpness", "runs", "--seed", str(2**32)], "argument --seed: 4294967296 is more than 4294967295"),
        (["fingerprint", "runs", "--step", "-1"], "argument --step: -1 is less than 0"),
        (
            ["sweep", RECIPE, "--grid", "model.name=vit_ti,vit_s17"],
            "model.name is vit_s17, which is not a known network",
        ),
        (
            ["sweep", RECIPE, "--grid", "data.name=digits,imagenet", "--data.train-split", "x"],
            "data set digits does not",
        ),
        (["sweep", RECIPE, "--grid", "model.name=resnet18", "--model.depth", "2"], "which resnet18 does not use"),
        (["status", "runs", "--json", "runs"], "runs is after an option, and belongs before it"),
        (["bench", "kernels", "--rounds", "1"], "argument --rounds: 1 is less than 2"),
    ],
    ids=" ".join,
)
def test_a_mistake_in_any_command_is_one_line(arguments, part, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", RECIPE, "--grid", "gnp.r=0.1", "--sweep-dir"],
        ["drill", RECIPE, "--run-dir"],
        ["bench", "generalization", "photographs", "--data.root", "data", "--only", "plain", "--out"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("launcher", ["JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_command_that_starts_processes_is_not_started_several_times(
    launcher, arguments, tmp_path, monkeypatch, capsys
):
    """Its processes would take themselves for parts of one run, and wait for each other."""
    monkeypatch.setenv(launcher, "2")
    monkeypatch.setattr("gnp_scale.data.sources.load", lambda config: None)
    assert main([*arguments, str(tmp_path / "folder")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "start it once" in line
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_a_run_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    job = Job(tmp_path / "log", ["train", RECIPE, "--run-dir", str(tmp_path / "file")])
    assert job.exit_codes() == [2]
    assert "cannot be a run folder" in job.output().splitlines()[-1]


@pytest.mark.slow
def test_help_lists_every_section_and_is_readable(tmp_path):
    text = run(tmp_path, "train", "--help")
    assert "gnp-scale train FILE:FUNCTION [--run-dir RUN]" in text
    for flag in ("--data.batch-size", "--gnp.alpha", "--mesh.fsdp", "--train.num-steps", "--checkpoint.every-steps"):
        assert flag in text


@pytest.fixture
def help_text(capsys, monkeypatch):
    """The help output of a command, in one column."""
    monkeypatch.setenv("COLUMNS", "120")

    def get(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return get


def test_every_example_of_the_help_is_a_command(help_text):
    lines = [line.split() for line in help_text("--help").splitlines() if line.startswith("    gnp-scale ")]
    assert {words[1] for words in lines} == {"train", "eval", "status", "sweep", "compare", "drill"}
    for _, *words in lines:
        options, flags = _parser().parse_known_args(words)
        if options.takes_flags and flags != ["--help"]:
            recipe.override(recipe.load(getattr(options, "recipe", RECIPE)), flags)


def test_help_begins_with_the_sections(help_text):
    overview, _, rest = help_text("train", "--help").partition("--data.name")
    assert "The defaults below are those of gnp_scale/config/; name a recipe to see its own." in overview
    assert rest
    for section in dataclasses.fields(Config):
        lines = [line for line in overview.splitlines() if line.startswith(f"  {section.name} ")]
        assert len(lines) == 1
        assert lines[0].endswith(".")
        assert len(lines[0]) <= 80


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_after_a_recipe_shows_its_values(flag, help_text):
    """Also if the default of the class is None, as for the depth."""
    text = help_text("train", RECIPE, flag)
    assert f"The defaults below are those of the recipe {RECIPE}." in text
    for name, value in recipe.flatten(recipe.load(RECIPE)).items():
        option = f"--{name.replace('_', '-')}"
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "''"
        assert default_of(option, text) == shown, option


def default_of(option, text):
    """The default that a help text, in boxes, shows for `option`."""
    options = text.partition("The defaults below")[2]
    words = " ".join(line.strip("│ ") for line in options.splitlines())
    return re.search(rf" {option}[ ,].*?\(default: (.*?)\)", words)[1]


def test_help_shows_none_where_a_recipe_has_it(tmp_path, help_text):
    (tmp_path / "some.py").write_text(
        "from gnp_scale.config import *\n"
        "def run(): return Config(gnp=GnpConfig(alpha=None, lam=0.01), checkpoint=CheckpointConfig(every_steps=None))\n"
    )
    text = help_text("train", f"{tmp_path / 'some.py'}:run", "--help")
    shown = {option: default_of(option, text) for option in ("--gnp.alpha", "--gnp.lam", "--checkpoint.every-steps")}
    assert shown == {"--gnp.alpha": "None", "--gnp.lam": "0.01", "--checkpoint.every-steps": "None"}


def test_version_names_the_libraries_too(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"gnp-scale {__version__}, jax {jax.__version__}, jaxlib ")


# `test_slurm.py` stops two processes by a signal, and compares the end.
@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_exits_75_and_the_run_goes_on_bitwise(number, num_processes, tmp_path, whole_run):
    run_dir = tmp_path / "run"
    command = ["train", *SHORT, "--run-dir", str(run_dir)]
    job = Job(tmp_path / "first", command, num_processes, NUM_DEVICES)
    job.wait_for(f"step 5/{NUM_SHORT_STEPS}")
    job.processes[-1].send_signal(number)
    assert job.exit_codes() == [75] * num_processes, job.output()
    stopped_at, _ = fingerprint(run_dir)
    assert 5 <= stopped_at < NUM_SHORT_STEPS
    output = run(tmp_path / "second", *command, num_processes=num_processes, num_devices=NUM_DEVICES)
    assert f"going on after step {stopped_at}, on the same mesh" in output
    assert fingerprint(run_dir) == fingerprint(whole_run(num_processes))
    assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, NUM_SHORT_STEPS + 1))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of the uninterrupted run with `num_processes` processes."""
    folders = {}

    def get(num_processes):
        if num_processes not in folders:
            run_dir = tmp_path_factory.mktemp("whole") / "run"
            options = {"num_processes": num_processes, "num_devices": NUM_DEVICES}
            run(run_dir.parent / "logs", "train", *SHORT, "--run-dir", str(run_dir), **options)
            folders[num_processes] = run_dir
        return folders[num_processes]

    return get


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(whole_run):
    """The same examples and, except for the order of sums between processes, the same numbers.

    Losses over 20 steps: an ulp of float32 is 6e-8 of a value, and Adam's division by small second moments lets a
    difference of a few ulps in a gradient grow by about a factor of ten in ten steps.
    """
    one, two = (read_metrics(whole_run(num_processes)) for num_processes in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for early in (0, 1):
        np.testing.assert_allclose(one[early]["train/loss"], two[early]["train/loss"], rtol=1e-6)
    losses = np.array([[row["train/loss"] for row in rows] for rows in (one, two)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_table_of_confusions_counts_every_image_once_in_any_number_of_processes(whole_run, num_processes):
    """Also those that another process has read."""
    values, step = shown_values(whole_run(num_processes)), NUM_SHORT_STEPS
    (text,) = values["eval/confusions/text_summary"][step]
    num_right = round(read_metrics(whole_run(num_processes))[-1]["eval/top1"] * 360)
    assert text.decode().startswith(f"The first guess is right for {num_right} of 360 images.")
    assert list(values["eval/worst_images"]) == [5, 10, 15, step]


@pytest.mark.slow
def test_eval_and_fingerprint_speak_of_the_newest_checkpoint(tmp_path, whole_run):
    run_dir = whole_run(1)
    pictures = tmp_path / "pictures"
    printed = run(tmp_path / "eval", "eval", str(run_dir), "--pictures", str(pictures), num_devices=NUM_DEVICES)
    scores = json.loads(printed.splitlines()[-1])
    assert scores == {"step": NUM_SHORT_STEPS} | {
        k: v for k, v in read_metrics(run_dir)[-1].items() if k.startswith("eval/")
    }
    assert "most frequent confusions: " in printed
    assert sorted(path.name for path in pictures.iterdir()) == ["confusion.png", "worst.png"]
    printed = run(tmp_path / "fingerprint", "fingerprint", str(run_dir), "--step", str(NUM_SHORT_STEPS), num_devices=1)
    assert printed.split() == [fingerprint(run_dir)[1], "step", str(NUM_SHORT_STEPS)]
