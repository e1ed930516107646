"""Bytes that the instructions of a program move between a device and its memory."""

from dataclasses import replace

from gnp_scale.planning.hlo import Computation, Instruction, Program

_NO_TRAFFIC = {
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "after-all",
    "partition-id",
    "while",
    "conditional",
    "call",
    "iota",
    "opt-barrier",
}
_NO_CALL = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveDone")
_VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")
_COPIES = ("copy-start", "slice-start", "async-start")


def memory_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one run of `instruction` reads from the memory of the device and writes to it.

    An instruction reads its operands and writes its results, unless they are on the chip. Of an array that it only
    slices, or of which it only replaces a part, that part counts.
    """
    opcode = instruction.opcode
    if opcode in _NO_TRAFFIC or opcode.endswith("-done") or any(f'"{name}"' in instruction.rest for name in _NO_CALL):
        return 0
    if opcode in _COPIES:  # A result is the source, another one the destination.
        ends = instruction.results[:2]
        return min((end.num_bytes for end in ends), default=0) * sum(not end.is_on_chip for end in ends)
    if opcode in ("dynamic-slice", "gather"):
        return _in_memory(computation, instruction.operands[:1]) and 2 * instruction.num_bytes
    if opcode == "dynamic-update-slice":
        return 2 * sum(array.num_bytes for array in computation.arrays(instruction.operands[1:2]))
    if opcode == "fusion-start":  # Of a GPU: its results are its operands, those of the fusion, and a number.
        instruction = replace(instruction, opcode="fusion", results=instruction.results[len(instruction.operands) : -1])
    if instruction.opcode == "fusion" and (names := instruction.called.get("calls")):
        return _fusion_bytes(program.computations[names[0]], computation, instruction)
    arrays = (*instruction.results, *computation.arrays(instruction.operands))
    return sum(array.num_bytes for array in arrays if not array.is_on_chip)


def _in_memory(computation: Computation, names: tuple[str, ...]) -> bool:
    return any(not array.is_on_chip for array in computation.arrays(names))


def _fusion_bytes(inner: Computation, outer: Computation, fusion: Instruction) -> int:
    written = [array.num_bytes for array in fusion.results if not array.is_on_chip]
    for buffer, part in _replaced(inner):
        if buffer in written:
            written[written.index(buffer)] = part
    total = sum(written)
    parameters = [each for each in inner.instructions.values() if each.opcode == "parameter"]
    for parameter in parameters:
        number = int(parameter.rest.partition(")")[0])
        if number < len(fusion.operands) and _in_memory(outer, fusion.operands[number : number + 1]):
            total += _read(inner, parameter)
    return total


def _replaced(inner: Computation) -> list[tuple[int, int]]:
    """For each array of which a fusion replaces a part: the bytes of the array, and those of the part."""
    return [
        (each.num_bytes, sum(array.num_bytes for array in inner.arrays(each.operands[1:2])))
        for each in inner.instructions.values()
        if each.opcode == "dynamic-update-slice"
    ]


def _read(inner: Computation, array: Instruction) -> int:
    """Bytes of a parameter of a fusion that it reads."""
    total = 0
    for user in inner.users(array.name):
        match user.opcode:
            case "dynamic-slice" | "gather" if user.operands[0] == array.name:
                total += user.num_bytes
            case "dynamic-update-slice" if user.operands[0] == array.name:
                continue
            case opcode if opcode in _VIEWS and user.num_bytes >= array.num_bytes and not user.is_root:
                total += min(array.num_bytes, _read(inner, user))
            case _:
                return array.num_bytes
    return min(total, array.num_bytes)
