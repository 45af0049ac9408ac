"""The text of an XLA program as instructions: names, shapes as they lie in memory, operands."""

import math
import re
from dataclasses import dataclass, field

_BITS = {"pred": 8, "bf16": 16, "token": 0}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_BEGIN = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")


@dataclass(frozen=True)
class Shape:
    """Of one array on one device."""

    plain_bytes: int
    """Of its values."""
    bytes: int
    """That it takes where it lies, with the padding of its tiles."""
    main: bool
    """Whether it lies in the device's main memory."""
    dtype: str = field(default="", compare=False)
    """XLA's name of it: f32, bf16."""
    sizes: tuple[int, ...] = field(default=(), compare=False)
    """Of its axes."""


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of its results."""
    operands: tuple[str, ...]
    number: int
    """Of a parameter; -1 of others."""
    rest: str
    """Attributes, as they stand."""
    root: bool

    def attribute(self, name: str) -> str:
        """A quoted attribute; empty where it is not there."""
        found = re.search(rf'{name}="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, name: str) -> list[str]:
        """The computation that an attribute names."""
        return re.findall(rf"\b{name}=%?([\w.\-]+)", self.rest)

    def branches(self) -> list[str]:
        """Computations of a conditional."""
        several = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if several:
            return _NAME.findall(several[1])
        return self.called("true_computation") + self.called("false_computation")

    def devices(self, everybody: int) -> int:
        """How many devices a collective joins: ``{{0,1},{2,3}}``, ``[2,4]<=[8]``, or axes of a mesh; all where it is not said."""
        pairs = re.search(r"source_target_pairs=\{\{", self.rest)
        if pairs:
            return everybody
        listed = re.search(r"replica_groups=\{\{([\d,]+)\}", self.rest)
        if listed:
            return len(listed[1].split(","))
        iota = re.search(r"replica_groups=\[\d+,(\d+)\]", self.rest)
        if iota:
            return int(iota[1])
        mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", self.rest)
        if mesh:
            sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
            # A part of an axis is written 'axis':(before)size.
            axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
            return math.prod(int(part) if part else sizes[name] for name, part in axes)
        return everybody


def computations(text: str) -> dict[str, dict[str, Instruction]]:
    """Instructions by computation and name; the entry computation is called ENTRY."""
    found: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line[:1] not in (" ", "\t", "}", "") and (head := _HEAD.match(line)):
            current = found.setdefault("ENTRY" if head[1] else head[2], {})
        elif (parsed := _instruction(line)) is not None:
            current[parsed.name] = parsed
    return found


def shapes(text: str) -> tuple[Shape, ...]:
    """Arrays of a type, those of tuples one after another."""
    return tuple(_shape(*match) for match in _SHAPE.findall(text))


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    bits = _bits(dtype)
    sizes = [int(dim.removeprefix("<=")) for dim in dims.split(",") if dim]
    minor_first, _, memory = layout.partition(":")
    tiles = [[int(side) for side in tile.split(",")] for tile in re.findall(r"T?\(([\d,]+)\)", re.sub(r"S\(\d+\)", "", memory)) if tile]
    order = [int(dim) for dim in minor_first.split(",") if dim]
    laid = [sizes[dim] for dim in reversed(order)] if len(order) == len(sizes) else sizes
    if tiles and "T(" in memory:
        # The first tile covers the innermost axes; those after it divide it.
        tile = tiles[0]
        laid = [1] * (len(tile) - len(laid)) + laid
        laid = laid[: len(laid) - len(tile)] + [
            math.ceil(size / side) * side for size, side in zip(laid[len(laid) - len(tile) :], tile, strict=True)
        ]
    place = re.search(r"S\((\d+)\)", memory)
    main = place is None or place[1] == "0"
    return Shape(math.ceil(math.prod(sizes) * bits / 8), math.ceil(math.prod(laid) * bits / 8), main, dtype, tuple(sizes))


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    # f32, s4, u16, c64, f8e4m3fn
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def _instruction(line: str) -> Instruction | None:
    begin = _BEGIN.match(line)
    if begin is None:
        return None
    at = begin.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    opened = line.index("(", end)
    closed = _closing(line, opened)
    opcode, given = line[end:opened].strip(), line[opened + 1 : closed]
    number = int(given) if opcode == "parameter" else -1
    return Instruction(
        begin[2], opcode, shapes(line[at:end]), tuple(_NAME.findall(given)), number, line[closed + 1 :], begin[1] is not None
    )


def _closing(line: str, at: int) -> int:
    """Where the bracket that opens at a place is closed."""
    depth = 0
    for place in range(at, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if not depth:
            return place
    raise ValueError(f"a bracket is not closed: {line[:200]}")
