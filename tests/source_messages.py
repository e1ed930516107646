"""The messages of the source that a user may meet, with "\\0" in the place of each value that a run fills in."""

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = (ROOT / "gnp_scale", ROOT / "kernels" / "gnp_kernels")
SCRIPTS = (*ROOT.glob("launch/*/*.sh"), *ROOT.glob("launch/slurm/*.sbatch"), ROOT / "requirements" / "find_python.sh")
LAUNCHER = ROOT / "launch" / "local" / "train.py"
HOLE = "\0"

# The argument that is the message: of functions that print one or keep one for later, and of errors.
_ARGUMENTS = {
    **dict.fromkeys(("say", "announce", "_on_lost", "ConfigError", "DownloadError", "DamagedFileError"), 0),
    **dict.fromkeys(("PassingError", "StoreError", "UnsupportedError", "ValueError", "ArgumentTypeError"), 0),
    **dict.fromkeys(("check", "Failure", "Plan", "Outage", "DivergedError", "_in_thread"), 1),
}
_OWNERS = ("", "self.", "streams.", "argparse.")


@dataclass(frozen=True)
class Message:
    """A message, where the source has it, and what shows it."""

    text: str
    place: str
    shown_by: str

    @property
    def room(self) -> str:
        """The room of `gnp_scale`, or its file beside the rooms; "gnp_kernels" and "launch" as wholes."""
        parts = self.place.split(":")[0].split("/")
        return parts[1] if parts[0] == "gnp_scale" else parts[0]


@functools.cache
def messages() -> list[Message]:
    """The messages of the packages and of the launch scripts."""
    found = [message for file in _code() for message in _of_code(file)]
    found += [message for script in SCRIPTS for message in _of_script(script)]
    return [message for message in found if sum(map(str.isalpha, message.text)) >= 8]


def strings() -> Iterator[str]:
    """All texts of the source, whatever they are for."""
    for file in _code():
        for node in ast.walk(_parsed(file)):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                yield from map(_tidy, _texts(node, {}))
    for script in SCRIPTS:
        yield from (message.text for message in _of_script(script))


def _code() -> list[Path]:
    return [*(file for package in PACKAGES for file in sorted(package.rglob("*.py"))), LAUNCHER]


def _of_code(file: Path) -> Iterator[Message]:
    root = next((package.parent for package in PACKAGES if file.is_relative_to(package)), ROOT)
    name = file.relative_to(root).as_posix()
    for function in ast.walk(_parsed(file)):
        if isinstance(function, ast.FunctionDef):
            values = _assigned(function)
            for shown_by, node in _shown(function, prints=file == LAUNCHER):
                yield from (Message(_tidy(text), f"{name}:{node.lineno}", shown_by) for text in _texts(node, values))


def _of_script(script: Path) -> Iterator[Message]:
    text = script.read_text()
    for match in re.finditer(r'\b(echo|refuse|unhealthy) "([^"]+)"', text):
        filled = re.sub(r"\$\{[^}]*\}|\$\w+", HOLE, match[2])
        place = f"{script.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        yield Message(_tidy(filled), place, match[1])


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _shown(function: ast.FunctionDef, prints: bool) -> Iterator[tuple[str, ast.expr]]:
    """What shows a message, and the expression of the message; what is printed is one if `prints`, or as an error."""
    # By convention such a function returns what is wrong, or None.
    tells_problem = function.returns is not None and ast.unparse(function.returns) == "str | None"
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = _ARGUMENTS.get(kind)
            if kind == "print" and (prints or any(ast.unparse(word.value) == "sys.stderr" for word in node.keywords)):
                place = 0
            if place is not None and len(node.args) > place and ast.unparse(node.func).removesuffix(kind) in _OWNERS:
                yield kind, node.args[place]
        if tells_problem and isinstance(node, ast.Return) and node.value is not None:
            yield "problem", node.value


def _assigned(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """The last expression that is assigned to each name in a function."""
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in assignments for target in node.targets if isinstance(target, ast.Name)}


def _texts(node: ast.expr, values: dict[str, ast.expr]) -> list[str]:
    """The texts that an expression may have; one hole if that is not known."""
    match node:
        case ast.Constant(str() as text):
            return [text]
        case ast.JoinedStr(parts):
            return list(map("".join, itertools.product(*(_texts(part, values) for part in parts))))
        case ast.FormattedValue(ast.Name() as name):
            return _texts(name, values)
        case ast.IfExp(_, text, other):
            return [*_texts(text, values), *_texts(other, values)]
        case ast.BinOp(left, ast.Add(), right):
            return [first + second for first in _texts(left, values) for second in _texts(right, values)]
        case ast.Name(name) if name in values:
            return _texts(values[name], {other: value for other, value in values.items() if other != name})
        case ast.Call(args=[ast.GeneratorExp(text), *_]):
            return _texts(text, values)
    return [HOLE]


def _tidy(text: str) -> str:
    return " ".join(text.split())
