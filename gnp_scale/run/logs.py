"""What the output of a process, kept in a file, tells."""

import re

from gnp_scale.run.streams import PROGRAM

_PROGRESS = re.compile(r"step \d+/\d+ ")
_FAILURE = ": failed: "
_ERROR = re.compile(rf"{PROGRAM}: |diverged: |Fatal Python error|[\w.]+(Error|Exception|Exit|Interrupt)\b")


def telling_line(text: str) -> str:
    """The last line of a log that tells an error; without one the last line, which shows how far a process came.

    A process may go on after a failure that it names. Other errors are the end: what was printed before the last
    progress, such as the traceback of a library that looks for a GPU, ended nothing.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    progress = [number for number, line in enumerate(lines) if _PROGRESS.match(line)]
    failures = [line for line in lines if _FAILURE in line]
    errors = [line for line in lines[progress[-1] + 1 if progress else 0 :] if _ERROR.match(line)]
    found = failures or errors or lines
    return found[-1].removeprefix(f"{PROGRAM}: ") if found else "its log is empty"
