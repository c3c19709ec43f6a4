"""Memory traffic of a compiled program, counted from its HLO text.

`compiled.as_text()` is the optimised program with one HLO instruction per line. A
fusion is one kernel: its intermediate values never reach memory, so only its operands
and results count.

The count is an estimate: it ignores caches, counts the whole operand of a gather, and
counts the operands of a sort once although the sort reads them several times.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of HLO, `NAME = TYPE OPCODE(ARGUMENTS), ATTRIBUTES`, as text.

    Attributes:
        name: name of the result.
        type: dtype, shape and layout of the result, or of each element of a tuple.
        opcode: name of the operation.
        arguments: names of the operands; for a parameter its number, for a constant its
            value.
        attributes: the rest of the line.
        is_root: True if its result is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


Computation = Mapping[str, Instruction]


class Module(NamedTuple):
    """A program: its computations by name, and the name of the entry computation."""

    computations: Mapping[str, Computation]
    entry: str


class Traffic(NamedTuple):
    """Memory traffic.

    Attributes:
        num_bytes: number of bytes read and written.
        unknown_loops: number of loops with an unknown trip count; `num_bytes` has their
            bodies once.
    """

    num_bytes: int
    unknown_loops: int

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Traffic":
        return self._replace(num_bytes=count * self.num_bytes)


_NOTHING = Traffic(0, 0)
# Operations that only rename existing data.
_FREE = frozenset(
    ("after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier")
) | {"parameter", "partition-id", "replica-id", "tuple"}
_SLICES = ("dynamic-slice", "slice")


def parse(text: str) -> Module:
    """Parses the text of a module, as returned by `compiled.as_text()`.

    Raises:
        ValueError: if `text` has no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _parse_instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("parse: the text must have an ENTRY computation, found none.")
    return Module(computations, entry)


def _parse_instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", maxsplit=1)
    split = _closing(right, 0) if right.startswith("(") else right.index(" ")
    type_, call = right[:split], right[split:].strip()
    opening = call.index("(")
    end = _closing(call, opening)
    return Instruction(
        name=left.removeprefix("ROOT ").removeprefix("%"),
        type=type_,
        opcode=call[:opening],
        arguments=call[opening + 1 : end - 1],
        attributes=call[end:],
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """Returns the index just after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(
        f"parse: a bracket of {text[start : start + 40]!r} is never closed."
    )


def bytes_of(type_: str) -> int:
    """Returns the bytes of an HLO type such as `f32[8,128]{1,0:T(8,128)}` in memory.

    Includes the padding of the type's layout.
    """
    return sum(
        _item_bytes(dtype, math.prod(_padded(shape, layout)))
        for dtype, shape, layout in _arrays(type_)
    )


def _arrays(type_: str) -> Iterator[tuple[str, list[int], str]]:
    """Yields the dtype, shape and layout of each array in an HLO type."""
    for dtype, shape, layout in re.findall(
        r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?", type_
    ):
        yield dtype, [int(size) for size in shape.split(",") if size], layout


def _item_bytes(dtype: str, count: int) -> int:
    bits = re.search(r"\d+", dtype)
    if bits is None:
        return count if dtype == "pred" else 0  # a token has no data
    return -(-count * int(bits[0]) // 8)


def _padded(shape: list[int], layout: str) -> list[int]:
    """Returns the shape in memory, padded to whole tiles.

    For example, the layout `2,1,0:T(8,128)` tiles the last two axes by 8 and 128.
    """
    order, _, tiling = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    if tile is None:
        return shape
    sizes = [shape[int(axis)] for axis in order.split(",") if axis]
    tiles = [int(size) for size in reversed(tile[1].split(","))]
    sizes += [1] * (len(tiles) - len(sizes))
    tiles += [1] * (len(sizes) - len(tiles))
    return [-(-size // by) * by for size, by in zip(sizes, tiles, strict=True)]


def _num_elements(type_: str) -> int:
    return sum(math.prod(shape) for _, shape, _ in _arrays(type_))


def traffic(module: Module, *, every_round: bool = True) -> Traffic:
    """Counts the bytes that the module reads and writes.

    A slice, or an operand that a fusion only slices, counts with the size of the slice;
    an in-place update counts with the size of the update. The body of a loop is
    multiplied by its trip count. A conditional counts its branch with the most traffic.

    Args:
        module: the program.
        every_round: True multiplies the body of a loop by its trip count; False counts
            the body once.
    """

    def of_computation(name: str) -> Traffic:
        computation = module.computations[name]
        total = _NOTHING
        for instruction in computation.values():
            total += of_instruction(instruction, computation)
        return total

    def of_instruction(instruction: Instruction, computation: Computation) -> Traffic:
        if instruction.opcode == "while":
            body = of_computation(_called(instruction, "body"))
            count = trip_count(instruction, computation, module)
            if count is None:
                return body + Traffic(0, 1)
            return body.times(count if every_round else 1)
        if instruction.opcode == "call":
            return of_computation(_called(instruction, "to_apply"))
        if instruction.opcode == "conditional":
            return max(map(of_computation, _branches(instruction)))
        return Traffic(_bytes_moved(instruction, computation, module), 0)

    return of_computation(module.entry)


def _called(instruction: Instruction, role: str) -> str:
    return re.search(rf"\b{role}=%?([\w.\-]+)", instruction.attributes)[1]


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return [_called(instruction, f"{way}_computation") for way in ("true", "false")]


def _bytes_moved(
    instruction: Instruction, computation: Computation, module: Module
) -> int:
    opcode, result = instruction.opcode, bytes_of(instruction.type)
    if opcode in _FREE or "AllocateBuffer" in instruction.attributes:
        return 0
    operands = [bytes_of(computation[name].type) for name in instruction.operands]
    if opcode in _SLICES:
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if opcode.endswith("-start"):  # reads now; the matching -done writes
        return sum(operands)
    if opcode.endswith("-done"):
        return result
    if opcode != "fusion":
        return sum(operands) + result
    fused = module.computations[_called(instruction, "calls")]
    shares = _shares_read(fused)
    read = sum(
        operands[int(part.arguments)] * shares[name]
        for name, part in fused.items()
        if part.opcode == "parameter"
    )
    return math.ceil(read) + _bytes_written(fused)


def _shares_read(fused: Computation) -> dict[str, float]:
    """Returns the fraction of each result that the rest of the fusion reads.

    `fused` are the instructions of the fusion, by name.
    """
    shares = {name: float(part.is_root) for name, part in fused.items()}
    for user in reversed(fused.values()):
        size = _num_elements(user.type)
        for position, name in enumerate(user.operands):
            whole = _num_elements(fused[name].type)
            if user.opcode == "dynamic-update-slice" and position == 0:
                asked = 0.0  # written in place
            elif user.opcode in _SLICES and position == 0:
                asked = size / whole * shares[user.name]
            elif size == whole:  # elementwise
                asked = shares[user.name]
            else:
                asked = 1.0
            shares[name] = max(shares[name], asked)
    return shares


def _bytes_written(fused: Computation) -> int:
    root = _root(fused)
    results = [fused[x] for x in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        result = _behind_copies(result, fused)
        if result.opcode == "dynamic-update-slice":
            result = fused[result.operands[1]]
        total += bytes_of(result.type)
    return total


def trip_count(
    loop: Instruction, computation: Computation, module: Module
) -> int | None:
    """Returns the trip count of a loop; None if the text does not determine it.

    On a GPU, XLA annotates it. On a TPU it is derived if the loop adds a constant to a
    counter until the counter reaches another constant, as in `jax.lax.scan`.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[_called(loop, "condition")]
    body = module.computations[_called(loop, "body")]
    test = _behind_copies(_root(condition), condition)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (_behind_copies(condition[x], condition) for x in test.operands)
    if counter.opcode != "get-tuple-element":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    first = _element(computation[loop.operands[0]], index, computation)
    after = _element(_root(body), index, body)
    if after is None or after.opcode != "add":
        return None
    added = [_behind_copies(body[x], body) for x in after.operands]
    step = next((x for x in added if x.opcode == "constant"), None)
    ends = [_constant(x) for x in (first, step, limit)]
    if None in ends or ends[1] <= 0:
        return None
    start, step, stop = ends
    return max(0, -(-(stop - start) // step))


def _root(computation: Computation) -> Instruction:
    (root,) = (x for x in computation.values() if x.is_root)
    return root


def _element(
    of: Instruction, index: int, computation: Computation
) -> Instruction | None:
    """Returns the instruction of element `index` of the tuple `of`.

    None if the tuple is not built by a `tuple` instruction.
    """
    if of.opcode != "tuple":
        return None
    return _behind_copies(computation[of.operands[index]], computation)


def _behind_copies(instruction: Instruction, computation: Computation) -> Instruction:
    while instruction.opcode in ("bitcast", "copy"):
        instruction = computation[instruction.operands[0]]
    return instruction


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.arguments) if instruction.arguments.isdigit() else None
