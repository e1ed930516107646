"""The text of a compiled program as computations and instructions, each with how often a step runs it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s32": 32}
ITEM_BITS |= {"u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}
"""Of an entry, by its type; other types, such as tokens, take no memory."""
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\](?P<layout>\{[^}]*\})?")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>.*?) (?P<opcode>[\w\-]+)\((?P<rest>.*)"
)
_CALLED = re.compile(r"(?P<role>calls|body|condition|to_apply|branch_computations|true_computation|false_computation)=")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """An operand or a result."""

    dtype: str
    """In HLO's words, such as bf16."""
    shape: tuple[int, ...]
    num_bytes: int
    is_on_chip: bool
    """In the memory of a TPU core, not in that of the device."""


@dataclass(frozen=True)
class Instruction:
    """An instruction of a program."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    """Their names."""
    rest: str
    """Its line after the opcode."""
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Of all results."""
        return sum(array.num_bytes for array in self.results)

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """The computations that it names, by their role."""
        found = {}
        for match in _CALLED.finditer(self.rest):
            tail = self.rest[match.end() :]
            names = tail[: tail.index("}")] if tail.startswith("{") else tail.partition(",")[0]
            found[match["role"]] = tuple(_NAME.findall(names))
        return found


@dataclass
class Computation:
    """A named list of instructions."""

    name: str
    is_entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def root(self) -> Instruction:
        """The one whose results are those of the computation."""
        return next(each for each in self.instructions.values() if each.is_root)

    def arrays(self, names: tuple[str, ...]) -> list[Array]:
        """The results of the instructions with these names."""
        return [array for name in names if name in self.instructions for array in self.instructions[name].results]

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take `name`."""
        return [each for each in self.instructions.values() if name in each.operands]


@dataclass(frozen=True)
class Program:
    """A compiled program of one device."""

    computations: dict[str, Computation]

    @classmethod
    def parse(cls, text: str) -> "Program":
        """The program with the text `compiled.as_text()`."""
        found: dict[str, Computation] = {}
        current = None
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                current = found[match["name"]] = Computation(match["name"], bool(match["entry"]))
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current.instructions[match["name"]] = _instruction(match)
        return cls(found)

    @property
    def entry(self) -> Computation:
        """Where it starts."""
        return next(each for each in self.computations.values() if each.is_entry)

    @cached_property
    def runs(self) -> dict[str, float]:
        """How often a step runs each computation, those inside fusions included.

        The body of a loop counts with the trips of the loop (once if they are not known), and each branch of a
        condition as if it were taken.
        """
        runs = dict.fromkeys(self.computations, 0.0)
        runs[self.entry.name] = 1.0
        # A computation stands before those that call it.
        for name in reversed(self.computations):
            for instruction in self.computations[name].instructions.values():
                for called, factor in self._calls(instruction):
                    runs[called] += factor * runs[name]
        return runs

    def launched(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Each instruction outside of fusions, with its computation and how often a step runs it."""
        inside = {
            name
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode.startswith(("fusion", "async"))
            for name in instruction.called.get("calls", ())
        }
        for name, computation in self.computations.items():
            if self.runs[name] and name not in inside:
                for instruction in computation.instructions.values():
                    yield computation, instruction, self.runs[name]

    @cached_property
    def num_unknown_loops(self) -> int:
        """Loops whose number of trips is not known."""
        instructions = (
            each for computation in self.computations.values() for each in computation.instructions.values()
        )
        return sum(each.opcode == "while" and self.num_trips(each) is None for each in instructions)

    def num_trips(self, loop: Instruction) -> int | None:
        """How often a loop runs its body; None if its condition has another form than counter < constant."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(match[1])
        (name,) = loop.called["condition"]
        condition = self.computations[name]
        test, constants = condition.root, []
        while test.opcode in ("fusion", "call", "copy", "bitcast"):
            constants += [limit for operand in test.operands if (limit := _constant(condition, operand)) is not None]
            if "calls" not in test.called and "to_apply" not in test.called:
                break
            condition = self.computations[next(iter(test.called.values()))[0]]
            test = condition.root
        constants += [limit for operand in test.operands if (limit := _constant(condition, operand)) is not None]
        return constants[0] if len(constants) == 1 and "direction=LT" in test.rest else None

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, float]]:
        trips = None
        for role, names in instruction.called.items():
            factor = 1.0
            if role == "to_apply" and instruction.opcode not in ("call", "custom-call"):
                continue
            if instruction.opcode == "while":
                trips = (self.num_trips(instruction) or 1) if trips is None else trips
                factor = trips + (role == "condition")
            yield from ((name, factor) for name in names if name in self.computations)


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match["rest"]
    operands = tuple(_NAME.findall(rest[: _end(rest)]))
    results = tuple(arrays(match["result"]))
    return Instruction(match["name"], match["opcode"], results, operands, rest, bool(match["root"]))


def _end(rest: str) -> int:
    """Where the operands end: the bracket that closes the one before `rest`."""
    depth = 1
    for place, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return place
    return len(rest)


def _constant(computation: Computation, name: str) -> int | None:
    found = computation.instructions.get(name)
    match = re.match(r"(\d+)\)", found.rest) if found is not None and found.opcode == "constant" else None
    return int(match[1]) if match else None


def arrays(result: str) -> Iterator[Array]:
    """The arrays in the text of a type, which may be a tuple."""
    for match in _ARRAY.finditer(result):
        shape = tuple(int(size) for size in match["shape"].split(",") if size)
        bits = ITEM_BITS.get(match["dtype"], 0) * math.prod(shape)
        yield Array(match["dtype"], shape, -(-bits // 8), "S(" in (match["layout"] or ""))
