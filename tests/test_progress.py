"""The bar of a run: whole at any width, in one line that tears nothing, and absent where nobody could see it move."""

import os
import re
import signal
import subprocess
import sys
import termios

import pytest
from terminal import Terminal, screen_of

from gnp_scale.chaos.local_processes import free_port
from gnp_scale.exit_codes import Exit

pytestmark = pytest.mark.usefixtures("unoptimized")

DEADLINE_S = 120
BAR = """
import os, sys, time
from gnp_scale.run import messages, streams
streams.protect()
from gnp_scale.monitoring.progress import ProgressBar
from gnp_scale.run.messages import announce
from gnp_scale.run.stages import Stage, Stages
messages.is_main_process = lambda: True
stages = Stages()

def numbers(step):
    perf = {"perf/step_ms": 99.0, "perf/images_per_s": 1293.2, "perf/mfu": 0.414}
    return {"train/loss": 0.5 / step, "train/accuracy": 0.8312, **perf}

def frame():
    # Frames are 0.1 s apart.
    time.sleep(0.5)

with ProgressBar(0, 1200, stages, True) as bar:
    exec(sys.argv[1])
"""
STEPS = """
for step in (1, 2, 3):
    bar.advance(step)
    bar.report(step, {"train/loss": 0.5})
bar.report(3, {"eval/top1": 0.25})
announce("said [in] between :smile:")
"""
LINES = [
    "step 1/1200  loss 0.5",
    "step 2/1200  loss 0.5",
    "step 3/1200  loss 0.5",
    "step 3/1200  test accuracy 0.25",
    "said [in] between :smile:",
]


def bar_command(code):
    return [sys.executable, "-c", BAR, code]


def shown(code, columns, **variables):
    """What a program that draws the bar writes on a terminal."""
    with Terminal(columns) as terminal:
        assert terminal.wait(terminal.start(bar_command(code), **variables), DEADLINE_S) == 0
        return terminal.read()


@pytest.mark.parametrize("variable", ["FORCE_COLOR=1", "TTY_COMPATIBLE=1", "TTY_INTERACTIVE=1", "COLUMNS=7"])
def test_a_file_gets_lines(tmp_path, variable):
    """No frames, no colours, and no line is broken."""
    name, _, value = variable.partition("=")
    with (tmp_path / "log").open("w") as log:
        subprocess.run(bar_command(STEPS), stderr=log, env=os.environ | {name: value}, check=True)
    assert (tmp_path / "log").read_text().splitlines() == LINES


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_a_terminal_without_cursor_or_colours_gets_lines(variables):
    """Without a single escape sequence."""
    assert shown(STEPS, 80, **variables).splitlines() == LINES


NUMBERS = """
with stages.enter(Stage.COMPILE, 0):
    frame()
for step in (1, 2, 3):
    bar.advance(step)
    time.sleep(0.1)
bar.report(3, numbers(3))
bar.report(3, {"eval/top1": 0.25})
with stages.enter(Stage.EVALUATE, 3):
    frame()
announce("said [in] between :smile:")
"""
ALL = "10.1 steps/s  1293 images/s  loss 0.1667  acc 83.1%"
WIDTHS = {
    120: rf"3/1200 ━+ ETA \d:\d\d:\d\d  {ALL}  MFU 41%",
    80: rf"3/1200 ━+ ETA \d:\d\d:\d\d  {ALL}",
    20: r"3/1200 ━+ \d:\d\d:\d\d",
    7: r"3/1200",
}


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_bar_leaves_out_what_has_no_room(columns):
    """And in no frame is it broken into two lines, of which one would stay."""
    written = shown(NUMBERS, columns)
    *above, last, prompt = screen_of(written, columns)
    assert re.fullmatch(WIDTHS[columns], last), last
    assert columns in (20, 7) or len(last) == columns - 1
    assert prompt == ""
    assert "".join(above).replace(" ", "") == "step3/1200testaccuracy0.25said[in]between:smile:"
    assert ("compiling" in written) == ("evaluating" in written) == (columns >= 20)
    assert "\x1b[?25l" not in written, "the cursor is not hidden, because nobody may be left to show it"


SLOW = 'bar.report(1, {"perf/step_ms": 12345.6, "perf/images_per_s": 0.61, "train/loss_perturbed": float("nan")})'
LAST = """
bar.advance(1199)
bar.advance(1200)
"""


def test_a_slow_run_has_seconds_per_step_and_its_only_loss():
    assert "12.3 s/step  0.610 images/s  loss nan" in shown(SLOW, 120)


def test_the_bar_of_the_last_step_says_how_long_it_took():
    *_, last, _ = screen_of(shown(LAST, 80), 80)
    assert re.fullmatch(r"1200/1200 ━+ in \d:\d\d:\d\d", last)


def test_the_messages_of_libraries_are_kept_above_the_bar():
    """Those of native code may be in the line of the bar, and nothing is lost."""
    code = "bar.advance(1); frame(); print('of Python', file=sys.stderr); frame()"
    code += "; os.write(2, b'one\\r\\ntwo\\r\\nthree\\r\\n'); frame()"
    first, second, *others = screen_of(shown(code, 80), 80)
    assert first == "of Python"
    assert second.endswith("one")
    assert others[:2] == ["two", "three"]
    assert re.match("1/1200 ", others[2])


def test_a_process_that_exits_at_once_leaves_no_bar():
    """As after a signal while the step is compiled: only its last words, and the next prompt in a line of its own."""
    code = "frame(); streams.say_at_last('the last words'); frame(); os._exit(0)"
    assert screen_of(shown(code, 80), 80) == ["gnp-scale: the last words", ""]


def test_a_terminal_that_is_resized_stopped_or_closed_ends_nobody():
    code = "print('begun', file=sys.stderr)\nfor step in range(1, 200): bar.advance(step); time.sleep(0.01)"
    with Terminal(80) as terminal:
        process = terminal.start(bar_command(code), stdout=subprocess.DEVNULL)
        terminal.wait_for("begun", process, DEADLINE_S)
        terminal.resize(20)
        terminal.read(0.3)
        terminal.columns = 20
        assert re.match(r"\d+/1200 ━+ 0:", terminal.screen()[-1])
        termios.tcflow(terminal._line, termios.TCOOFF)
    assert process.wait(DEADLINE_S) == 0


def train_command(run_dir):
    arguments = ["train", "tests/stuck.py:small", "--run-dir", str(run_dir), "--train.num-steps", "4000"]
    return [sys.executable, "-m", "gnp_scale.cli", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "num_processes"), [(80, 1), pytest.param(20, 2, marks=pytest.mark.long)])
def test_a_run_that_is_stopped_leaves_a_clean_terminal(tmp_path, columns, num_processes):
    """Of two processes with one terminal, one draws, also if the other gets the signal."""
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // num_processes)}
    if num_processes == 2:
        variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    with Terminal(columns) as terminal:
        ranks = [{"JAX_PROCESS_ID": str(rank)} if num_processes == 2 else {} for rank in range(num_processes)]
        runs = [terminal.start(train_command(tmp_path), **variables, **rank) for rank in ranks]
        terminal.wait_for("test accuracy", runs[0], DEADLINE_S)
        runs[-1].send_signal(signal.SIGTERM)
        assert [terminal.wait(run, DEADLINE_S) for run in runs] == [Exit.PREEMPTED] * num_processes
        lines = terminal.screen()
    *torn, last = (number for number, line in enumerate(lines) if re.match(r"\d+/4000 ", line))
    # The library for communication writes into the line of the bar, beside Python.
    assert num_processes == 2 or not torn
    # The spaces at the ends of lines cannot be seen.
    words = "".join(lines[last + 1 :]).replace(" ", "")
    assert re.fullmatch(r"stoppedafterstep\d+andsaved,nostepislost:startthesamecommandagaintogoon", words)
    assert lines[-1] == ""
    assert sum(line.startswith("step 5/4000") for line in lines) == 1, "of two processes, one reports"
