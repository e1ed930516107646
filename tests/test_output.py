"""Output that ends, fills up or blocks does not disturb a run, and external text is printed unchanged."""

import fcntl
import os
import pty
import shlex
import subprocess
import sys
import termios

import pytest

from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.monitoring import progress
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run import messages, status
from gnp_scale.run.console import make_console
from gnp_scale.run.stages import Stages
from gnp_scale.run.streams import one_line, say

pytestmark = pytest.mark.usefixtures("unoptimized")

TALK = """
import sys
from gnp_scale.run import streams
streams.protect()
for number in range({num_lines}):
    streams.say(f"line {{number}}")
print("result")
print("told directly", file=sys.stderr)
sys.exit(7 if streams.lost_results() else 3)
"""
DEADLINE_S = 120


def talk(num_lines=3, shell="", **streams):
    """A process that prints messages and a result; it ends with 3, or with 7 if the result is lost."""
    command = [sys.executable, "-c", TALK.format(num_lines=num_lines)]
    if shell:
        command = ["bash", "-c", f"{shlex.join(command)} {shell}"]
    return subprocess.Popen(command, **streams)


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("2>&-", 3),
        ("1>&-", 3),
        ("0>&- 1>&- 2>&-", 3),
        ("2>/dev/full", 3),
        ("1>/dev/full", 7),
        ("2>&1 | head -n 1; exit ${PIPESTATUS[0]}", 3),
        ("| true; exit ${PIPESTATUS[0]}", 3),
    ],
)
def test_output_that_nobody_takes_ends_nobody(shell, code):
    """With its own exit code, not Python's 120; only a result that is lost on a full disk is a failure."""
    process = talk(100_000 if "head" in shell else 3, shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    assert b"Traceback" not in out + err


def test_a_descriptor_that_was_closed_is_not_that_of_the_next_file(tmp_path):
    """Otherwise a library's writes to standard error would go into it."""
    code = (
        "import os; from gnp_scale.run import streams as s; s.protect(); f = open('next', 'w'); os.write(2, b'noise')"
    )
    subprocess.run(["bash", "-c", f"{shlex.join([sys.executable, '-c', code])} 2>&-"], cwd=tmp_path, check=True)
    assert (tmp_path / "next").read_text() == ""


def test_a_pipe_that_nobody_reads_holds_up_nobody():
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    process = talk(20_000, stdout=subprocess.DEVNULL, stderr=writer)
    assert process.wait(DEADLINE_S) == 3
    # Other processes with the same pipe still block on it.
    assert os.get_blocking(writer)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    assert b"line 0\n" in text
    assert b"line 19999" not in text


def test_a_gap_is_marked_when_somebody_reads_again():
    code = "import sys; from gnp_scale.run import streams as s; s.protect(); [s.say('x') for _ in range(9999)]"
    code += "; print('full', flush=True); sys.stdin.readline(); s.say('again')"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer
    )
    os.close(writer)
    assert process.stdout is not None
    assert process.stdout.readline() == b"full\n"
    before = os.read(reader, 1 << 20)
    process.communicate(b"go on\n", timeout=DEADLINE_S)
    with open(reader, "rb") as file:
        after = file.read()
    gap = b"\ngnp-scale: lines are missing here (nobody reads them)\ngnp-scale: again\n"
    assert (before + after).endswith(gap)


def test_a_terminal_that_is_closed_ends_nobody():
    controller, terminal = pty.openpty()
    process = talk(200_000, stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True)
    os.close(terminal)
    os.read(controller, 1)
    os.close(controller)
    assert process.wait(DEADLINE_S) == 3


def test_a_terminal_that_was_stopped_holds_up_nobody():
    """Ctrl-S."""
    controller, terminal = pty.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    process = talk(1000, stdout=subprocess.DEVNULL, stderr=terminal)
    try:
        assert process.wait(DEADLINE_S) == 3
    finally:
        termios.tcflow(terminal, termios.TCOON)
        os.close(terminal)
        os.close(controller)


class Broken:
    """A stream of a program that uses this package as a library."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def isatty(self):
        return False


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError("full"), ValueError("closed file")], ids=repr)
def test_saying_a_line_never_raises(monkeypatch, error):
    monkeypatch.setattr(sys, "stderr", Broken(error))
    say("a line")
    messages.announce("a line")
    with progress.ProgressBar(0, 10, Stages(), shown=True) as bar:
        bar.report(1, {"train/loss": 1.0})
    monkeypatch.setattr(sys, "stderr", None)
    say("a line")


STRANGE = ["lr[/b]", "[red]", ":smile:", "a b", "it's", "[link=x]y", "äß"]


ERRORS = {
    "several lines": (ValueError("a leaf\n  of 3 rows"), "a leaf of 3 rows"),
    "what JAX adds": (ValueError("a leaf\n--------------------\nFor simplicity, JAX has removed"), "a leaf"),
    "no text": (OSError(), "OSError"),
    "bytes of a server": (OSError("\x1b[31m\x00SSH"), "?[31m?SSH"),
    "advice at the end": (ValueError("x" * 500 + "y" * 100), "x" * 500 + "y" * 100),
    "the cause at the end": (OSError("a" * 80 + "b" * 2000 + "c" * 120), "a" * 80 + " ... " + "c" * 120),
}


@pytest.mark.parametrize(("error", "line"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_told_in_one_line(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize("name", STRANGE)
def test_text_from_outside_is_printed_as_it_is(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(messages, "console", make_console(stderr=True))
    run_dir = tmp_path / name
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text('{"train": {"num_steps": 7}}')
    messages.announce(f"run folder {run_dir}")
    progress.print_summary(run_dir, 7, {"eval/top1": 1.0, "eval/top5": 1.0, "eval/loss": 0.0}, 1.0)
    err = capsys.readouterr().err
    assert err.count(str(run_dir)) >= 2
    (line,) = (line for line in err.splitlines() if line.startswith("watch it: "))
    assert shlex.split(line)[-1] == str(run_dir)
    status.print_status(run_dir)
    assert str(run_dir) in capsys.readouterr().out


def test_the_summary_needs_no_working_folder(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    progress.print_summary(tmp_path, 7, {"eval/top1": 1.0, "eval/top5": 1.0, "eval/loss": 0.0}, 1.0)
    assert f"--logdir {tmp_path}" in capsys.readouterr().err


def damaged_folders(folder):
    """Folders without a run, or with an incomplete one, by problem."""
    run = folder / "run"
    run.mkdir()
    (folder / "file").write_text("no folder")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    for name, text in {
        "cut": '{"train": {"num',
        "list": "[1]",
        "null": '{"train": {"num_steps": null}}',
        "": "",
    }.items():
        each = folder / f"config-{name}"
        each.mkdir()
        (each / "config.json").write_text(text)
    binary = folder / "binary"
    binary.mkdir()
    (binary / "config.json").write_bytes(b"\xff\0")
    for name in ("config.json", "goodput.jsonl", "metrics.jsonl"):
        each = folder / f"folder-{name}"
        each.mkdir()
        (each / "config.json").write_text('{"train": {"num_steps": 7}}')
        (each / name).unlink(missing_ok=True)
        (each / name).mkdir()
    return [path for path in folder.iterdir() if path != run] + [folder / "nothing", folder / ("x" * 300)]


def test_status_of_anything_that_is_no_run_is_one_line(tmp_path):
    for folder in damaged_folders(tmp_path):
        with pytest.raises(ConfigError) as caught:
            status.print_status(folder)
        assert "\n" not in str(caught.value), folder
        assert str(folder) in str(caught.value)


def test_status_of_a_run_that_is_being_written(tmp_path, capsys):
    """Incomplete lines, checkpoints that appear and disappear, and records of another version."""
    (tmp_path / "config.json").write_text('{"train": {"num_steps": 7}}')
    line = '{"began": 1.0, "time": 2.0, "stage": "train", "from_step": 0, "step": 3, "num_rolled_back_steps": 0,'
    line += ' "first_step_s": 1.0, "seconds": {"train": 1.0}'
    later = line + ', "exit": 134, "field_of_a_later_version": 1}'
    (tmp_path / "goodput.jsonl").write_text(f'{{"began": 1}}\n{{"exit": 0}}\n\0\0{line}}}\n{later}\n{line}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train/loss": 0.5}\n{"step": 4, "tr')
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    status.print_status(tmp_path)
    out = capsys.readouterr().out
    assert "failed, exit code 134" in out
    assert "0.5 at step 3" in out


def test_an_exit_code_tells_that_results_are_lost(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"num_steps": 7}}')
    command = [sys.executable, "-m", "gnp_scale.cli", "status", str(tmp_path)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == Exit.FAILED
    assert result.stderr == "gnp-scale: standard output cannot be written (No space left on device)\n"


def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/config.json", "w") as file:
        file.write('{"train": {"num_steps": 7}}')
    for arguments in (["status"], ["eval"]):
        command = [sys.executable, "-m", "gnp_scale.cli", *arguments, folder]
        result = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"COLUMNS": "300"})
        assert b"/\\udcff" in result.stdout + result.stderr
        assert b"Traceback" not in result.stderr


def test_a_table_is_whole_on_a_narrow_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    folder = tmp_path / ("long" * 20)
    monkeypatch.setattr(messages, "console", make_console(stderr=True))
    progress.print_summary(folder, 7, {"eval/top1": 1.0, "eval/top5": 1.0, "eval/loss": 0.0}, 1.0)
    cells = [line.split("│")[2].strip() for line in capsys.readouterr().err.splitlines() if line.count("│") == 3]
    assert str(folder) in "".join(cells)


@pytest.mark.slow
def test_training_goes_on_without_its_output(tmp_path):
    """In four ways: standard error full, closed, without a reader, and with one that does not read."""
    arguments = ["train", "tests/stuck.py:small", "--train.log-every-steps", "1"]
    command = [sys.executable, "-m", "gnp_scale.cli", *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    shells = {
        "full": "2>/dev/full >/dev/full",
        "closed": "2>&- >&- <&-",
        "head": "2>&1 | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
        "blocked": f"2>&{writer}",
    }
    for name, shell in shells.items():
        shell_command = f"{shlex.join([*command, '--run-dir', str(tmp_path / name)])} {shell}"
        done = subprocess.run(["bash", "-c", shell_command], env=env, pass_fds=[writer], timeout=300, check=False)
        assert done.returncode == 0, name
    for name in shells:
        assert [row["step"] for row in read_metrics(tmp_path / name)] == list(range(1, 13))
        assert (tmp_path / name / "checkpoints" / "12").is_dir()
    for end in (reader, writer):
        os.close(end)
