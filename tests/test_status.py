"""`gnp-scale status` of many runs: a row for each, whatever state it is in, until all have ended."""

import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

from gnp_scale.cli import main
from gnp_scale.exit_codes import Exit
from gnp_scale.run import overview
from gnp_scale.run.find import find_runs
from gnp_scale.run.store_requests import StoreError

DEADLINE_S = 60
LINE = {"began": 0.0, "stage": "train", "from_step": 0, "num_rolled_back_steps": 0, "first_step_s": 1.0}


def make_run(run_dir, step=500, *, code=None, age_s=1.0, rows=({"train/loss": 0.25}, {"eval/top1": 0.75})):
    """A run of 1000 steps that trained for 80 of 100 s, with its last record `age_s` ago."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text('{"train": {"num_steps": 1000}}')
    now = time.time() - age_s
    record = LINE | {"began": now - 100, "time": now, "step": step, "seconds": {"train": 80.0}}
    (run_dir / "goodput.jsonl").write_text(json.dumps(record if code is None else record | {"exit": int(code)}) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | row) + "\n" for row in rows))
    return run_dir


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of runs in every state, with other things among them."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    make_run(runs / "a-running")
    make_run(runs / "b-finished", 1000, code=Exit.FINISHED, age_s=300)
    make_run(runs / "c-preempted", code=Exit.PREEMPTED, age_s=7300)
    make_run(runs / "d-failed", code=Exit.FAILED, rows=())
    make_run(runs / "e-hung", code=Exit.HUNG, rows=[{"train/loss_perturbed": "nan"}])
    make_run(runs / "f-dead", age_s=3 * 86400)
    (runs / "g-new").mkdir()
    (runs / "g-new" / "config.json").write_text('{"train": {"num_steps": 7}}')
    (runs / "no-run").mkdir()
    (runs / "notes.txt").write_text("")
    return runs


def table_rows(capsys):
    """The cells of the printed tables."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    return [cells for cells in lines if cells[0] != "run"]


def test_a_folder_of_runs_is_a_table_with_a_row_for_each(runs, capsys):
    assert main(["status", "runs/"]) == 0
    rows = [[re.sub(r"^\d+ s$", "seconds", cell) for cell in cells] for cells in table_rows(capsys)]
    assert rows == [
        ["runs:"],
        ["a-running", "running: train", "500/1000", "0.25", "75.0%", "80.0%", "seconds"],
        ["b-finished", "finished", "1000/1000", "0.25", "75.0%", "80.0%", "5 min"],
        ["c-preempted", "preempted", "500/1000", "0.25", "75.0%", "80.0%", "2 h"],
        ["d-failed", "failed, code 1", "500/1000", "80.0%", "seconds"],
        ["e-hung", "hung", "500/1000", "nan", "80.0%", "seconds"],
        ["f-dead", "dead", "500/1000", "0.25", "75.0%", "80.0%", "3 d"],
        ["g-new", "not started", "0/7"],
    ]


def test_runs_and_folders_of_them_may_be_mixed_and_count_once(runs, capsys):
    assert main(["status", "runs/b-finished", "runs", "runs/b-finished/"]) == 0
    assert [row[0] for row in table_rows(capsys)][:4] == ["runs:", "b-finished", "a-running", "c-preempted"]


def test_a_single_run_is_shown_with_its_details(runs, capsys):
    assert main(["status", "runs/b-finished"]) == 0
    assert "time of all starts" in capsys.readouterr().out
    assert main(["status", "runs/b-finished", "runs/d-failed"]) == 0
    assert "time of all starts" not in capsys.readouterr().out


def test_json_has_a_line_for_each_run(runs, capsys):
    assert main(["status", "--json", "runs"]) == 0
    lines = {line["run"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(lines) == 7
    assert lines["runs/e-hung"]["loss"] == "nan"
    finished = lines["runs/b-finished"]
    assert finished.pop("age_s") == pytest.approx(300, abs=30)
    assert finished.pop("goodput") == pytest.approx(0.8)
    numbers = {"exit": 0, "step": 1000, "num_steps": 1000, "loss": 0.25, "top1": 0.75, "error": None}
    assert finished == {"run": "runs/b-finished", "state": "finished", "stage": None, **numbers}
    assert main(["status", "--json", "runs/b-finished"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/b-finished"


def test_an_evaluation_long_ago_is_found(tmp_path):
    """Beyond the part of the metrics that is read first."""
    rows = [{"eval/top1": 0.5}, *[{"train/loss": 1.0, "text": "x" * 200}] * 2000, {"train/loss": 2.0}]
    row = overview.read_row("run", make_run(tmp_path, rows=rows))
    assert (row.loss, row.top1) == (2.0, 0.5)


def test_a_damaged_run_is_an_error_only_if_it_is_named(runs, capsys):
    (runs / "g-new" / "config.json").write_text('{"train": {')
    assert main(["status", "runs/a-running", "runs/g-new"]) == Exit.WRONG_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gnp-scale: runs/g-new/config.json is damaged")
    assert main(["status", "runs"]) == 0
    out = capsys.readouterr().out
    assert "unreadable" in out
    assert "runs/g-new/config.json is damaged" in out


def test_a_folder_that_nobody_may_look_into_is_a_row_and_is_named(runs, capsys, monkeypatch):
    """As a shared folder of runs may have; simulated, because root may look into each."""

    def refuse(path, *arguments, real, **options):
        if path.parent.name == "no-run":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    for name in ("exists", "read_text", "read_bytes"):
        monkeypatch.setattr(Path, name, functools.partialmethod(refuse, real=getattr(Path, name)))
    assert main(["status", "runs"]) == 0
    out = capsys.readouterr().out
    assert "runs/no-run/config.json cannot be read (Permission denied)" in out
    assert "finished" in out
    for command in ("status", "compare"):
        assert main([command, "runs/no-run"]) == Exit.WRONG_CONFIG
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search("runs/no-run.* cannot be read", line)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(500, "preempted, saved"), (450, "preempted, 50 steps not saved"), (None, "preempted, 500 steps not saved")],
)
def test_a_run_that_was_stopped_without_a_save_is_not_called_saved(stored, expected, tmp_path, capsys):
    """Its grace time was over, or its disk was full."""
    make_run(tmp_path, code=Exit.PREEMPTED)
    if stored is not None:
        (tmp_path / "checkpoints" / str(stored)).mkdir(parents=True)
    assert main(["status", str(tmp_path)]) == 0
    assert f" {expected} " in capsys.readouterr().out


def test_the_newest_loss_may_be_of_a_perturbed_pass_alone(tmp_path, capsys):
    """As with a stale direction, whose gate opened after the first steps."""
    make_run(tmp_path, rows=[{"step": 2, "train/loss": 2.5}, {"step": 400, "train/loss_perturbed": 0.5}])
    assert main(["status", str(tmp_path)]) == 0
    assert "0.5 at step 400" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [{"train/loss": "low"}, {"train/loss": [1]}, {"train/loss": 10**400}, {"step": "x", "train/loss": 1.0}],
    ids=lambda damage: str(damage)[:30],
)
def test_a_damaged_row_of_the_metrics_counts_for_nothing(damage, tmp_path, capsys):
    make_run(tmp_path, rows=[{"train/loss": 0.5}, {"eval/top1": 0.75, "train/loss": "inf"}, damage])
    assert main(["status", str(tmp_path)]) == 0
    assert "inf at step 500" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["loss"], row["top1"], row["step"]) == ("inf", 0.75, 500)


def test_a_run_without_its_record_is_unknown_and_not_awaited(runs, capsys):
    (runs / "b-finished" / "goodput.jsonl").unlink()
    assert main(["status", "runs/b-finished", "--watch", "1"]) == 0
    out = capsys.readouterr().out
    assert "unknown: its record goodput.jsonl is missing" in out
    assert "1,000 of 1,000" in out
    assert main(["status", "--json", "runs/b-finished"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["state"], row["step"]) == ("unknown", 1000)


@pytest.mark.parametrize("name", ["no-run", "notes.txt", "nothing", "x" * 300])
def test_what_is_no_run_is_an_error_if_it_is_named(runs, capsys, name):
    advice = "give another path" if len(name) > 255 else "give the folder of a run"
    assert main(["status", "runs/a-running", f"runs/{name}"]) == Exit.WRONG_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert f"runs/{name}" in line
    assert advice in line


def test_a_file_that_cannot_be_read_is_named(runs, capsys):
    (runs / "b-finished" / "goodput.jsonl").unlink()
    (runs / "b-finished" / "goodput.jsonl").mkdir()
    assert main(["status", "runs/b-finished"]) == Exit.WRONG_CONFIG
    assert "runs/b-finished/goodput.jsonl cannot be read (Is a directory): mend that" in capsys.readouterr().err


@pytest.mark.parametrize("num_steps", ["1e308", "-20"])
def test_a_length_that_no_run_has_is_damage_and_leaves_the_table_readable(num_steps, runs, capsys):
    (runs / "b-finished" / "config.json").write_text(f'{{"train": {{"num_steps": {num_steps}}}}}')
    assert main(["status", "runs/b-finished"]) == Exit.WRONG_CONFIG
    assert "is damaged (its train.num_steps is out of range)" in capsys.readouterr().err
    assert main(["status", "runs"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 200


def test_points_of_a_sweep_that_were_not_started_are_listed_and_awaited(tmp_path, monkeypatch):
    """Between two points of a sweep no run exists for seconds: the sweep has not ended."""
    (tmp_path / "sweep.json").write_text('{"points": {"seed=1": {}, "seed=0": {}}}')
    make_run(tmp_path / "seed=1", code=Exit.FINISHED)
    rows = [overview.read_row(name, folder) for name, (folder, _) in find_runs([tmp_path]).items()]
    assert [(row.run.rpartition("/")[2], row.state) for row in rows] == [
        ("seed=1", "finished"),
        ("seed=0", "not started"),
    ]
    assert [row.has_ended for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--watch", "runs"], "runs is no number of seconds: give --watch after the runs"),
        (["runs", "--watch", "0"], "0 is out of range: give seconds between 0 and 86400"),
        (["runs", "--watch", "nan"], "nan is out of range"),
        ([], "RUN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument_is_one_line(runs, capsys, arguments, part):
    assert main(["status", *arguments]) == Exit.WRONG_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_a_watch_ends_with_the_last_run_and_survives_a_store_that_does_not_answer(runs, capsys, monkeypatch):
    """Here without a terminal: each table is below the one before."""
    folder, waits = Path("runs/a-running"), []
    read_history = overview.read_history

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            make_run(folder, 1000, code=Exit.FINISHED)

    def read_or_fail(run_dir):
        if len(waits) == 1:
            raise StoreError("no answer", is_lasting=False)
        return read_history(run_dir)

    monkeypatch.setattr(overview.time, "sleep", wait)
    monkeypatch.setattr(overview, "read_history", read_or_fail)
    assert main(["status", str(folder), "runs/d-failed", "--watch", "2.5"]) == 0
    assert waits == [2.5, 2.5]
    shown = [row[1] for row in table_rows(capsys) if row[0] == "a-running"]
    assert shown == ["running: train", "no answer", "finished"]


@pytest.mark.parametrize("columns", [100, 20])
def test_a_watch_on_a_terminal_draws_over_the_table_before_and_ends_at_ctrl_c(runs, columns):
    command = [sys.executable, "-m", "gnp_scale.cli", "status", "runs/a-running", "runs/d-failed", "--watch", "0.2"]
    with Terminal(columns, rows=40) as terminal:
        process = terminal.start(command)
        terminal.wait_for("runn", process, DEADLINE_S)
        terminal.read(0.5)
        make_run(runs / "a-running", 501)
        terminal.wait_for("501", process, DEADLINE_S)
        process.send_signal(signal.SIGINT)
        assert terminal.wait(process, DEADLINE_S) == Exit.INTERRUPTED
        *table, last, prompt = terminal.screen()
    assert (last, prompt) == ("gnp-scale: interrupted" if columns == 100 else "ed", "")
    text = "".join(table)
    assert text.count("a-running") == text.count("501/1000") == text.count("d-failed") == 1
    assert text.count("500/1000") == 1


def test_a_watch_ends_when_nobody_reads_it(runs):
    """As in `status runs --json --watch | head -n 1`."""
    command = [sys.executable, "-m", "gnp_scale.cli", "status", "runs", "--json", "--watch", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["run"] == "runs/a-running"
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 0


def test_a_watch_in_a_file_has_no_control_sequences(runs, tmp_path):
    (runs / "f-dead" / "config.json").unlink()
    command = [sys.executable, "-m", "gnp_scale.cli", "status", "runs/b-finished", "runs/d-failed", "--watch"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    assert "\x1b" not in result.stdout
    assert "finished" in result.stdout


def test_a_watch_goes_on_without_a_run_that_is_moved(runs, capsys, monkeypatch):
    folders = ["runs/b-finished", "runs/a-running"]
    moves = iter([("a-running", "moved"), ("b-finished", "also-moved")])

    def move(_):
        old, new = next(moves)
        (runs / old).rename(runs / new)

    monkeypatch.setattr(overview.time, "sleep", move)
    assert main(["status", *folders, "--json", "--watch", "1"]) == 0
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["finished", "running", "finished", "gone"]


def test_a_watch_waits_for_a_run_that_is_starting(runs, capsys, monkeypatch):
    """A run notes its configuration seconds before it notes how it fares."""
    goodput = runs / "b-finished" / "goodput.jsonl"
    metrics = runs / "b-finished" / "metrics.jsonl"
    content = goodput.read_bytes()
    goodput.unlink()
    metrics.unlink()
    monkeypatch.setattr(overview.time, "sleep", lambda _: goodput.write_bytes(content))
    assert main(["status", "runs/b-finished", "--json", "--watch", "1"]) == 0
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["not started", "finished"]


@pytest.mark.parametrize(
    "text", ['{"points": [1]}', '{"points": "ab"}', "[" * 100_000, "{}", "3"], ids=lambda t: t[:20]
)
def test_a_damaged_record_of_a_sweep_is_one_line(text, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(text)
    assert main(["status", str(tmp_path)]) == Exit.WRONG_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert "sweep.json is damaged (" in line
