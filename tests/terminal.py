"""Processes in a pseudo terminal, and what a person sees there."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal:
    """A terminal of some columns, to whose lines `start` connects standard error, or also standard output."""

    def __init__(self, columns=80, rows=24):
        self.columns = columns
        self._controller, self._line = pty.openpty()
        self.resize(columns, rows)
        self._written = b""
        self._processes = []

    def resize(self, columns, rows=24):
        fcntl.ioctl(self._line, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def start(self, command, *, stdout=None, **variables):
        """A process whose terminal this is; variables of None are unset."""
        env = {**os.environ, "TERM": "xterm-256color", **variables}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            env.pop(name, None) if name not in variables else None
        output = self._line if stdout is None else stdout
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=self._line, env=env)
        self._processes.append(process)
        return process

    def read(self, seconds=0.0):
        """All that is written until now, and in the next `seconds`."""
        end = time.monotonic() + seconds
        while select.select([self._controller], [], [], max(0.0, end - time.monotonic()))[0]:
            self._written += os.read(self._controller, 1 << 16)
        return self._written.decode(errors="replace")

    def wait_for(self, text, process, timeout_s):
        """Waits until `text` is written."""
        deadline = time.monotonic() + timeout_s
        while text not in self.read(0.05):
            assert process.poll() is None, self._written[-2000:]
            assert time.monotonic() < deadline, f"no {text!r} in {self._written[-2000:]}"

    def wait(self, process, timeout_s):
        """The exit code of the process, whose output is read meanwhile."""
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            self.read(0.05)
            assert time.monotonic() < deadline, f"it does not end: {self._written[-2000:]}"
        self.read()
        return process.returncode

    def close(self):
        """As a person closes the window: processes go on, unless they notice it."""
        os.close(self._line)
        os.close(self._controller)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close()
        for process in self._processes if kind is not None else ():
            process.kill()
            process.wait()

    def screen(self):
        """The lines that a person can read, from the first one that has scrolled away to that of the cursor."""
        return screen_of(self.read(), self.columns)


def screen_of(text, columns):
    """The lines of a terminal that knows what a bar needs: colours, going up, and erasing a line."""
    rows, row, column = [""], 0, 0
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None, f"unknown here: {text[position : position + 20]!r}"
        position = token.end()
        numbers, letter, control, shown = token.groups()
        if letter == "A":
            row = max(0, row - int(numbers or 1))
        elif letter == "K":
            assert numbers == "2"
            rows[row] = ""
        elif letter is not None:
            assert letter == "m", f"unknown here: {token.group()!r}"
        elif control == "\r":
            column = 0
        elif control == "\n":
            row += 1
        for character in shown or "":
            if column == columns:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]
