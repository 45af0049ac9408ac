"""Reads a compiled program: kernels, bytes that they move, collectives and their bytes. Bodies of loops count as often as they run.

Bytes are those of the device's main memory: every kernel reads its operands from there and writes its results there, but for what lies in
another memory space (``S(1)`` is a TPU's on-chip memory). Sizes are those of the layout, with the padding of its tiles: a TPU keeps 64
channels as 128. What a GPU finds in its cache is counted, so its traffic may be less.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from resnet_jax.plan.instructions import Instruction, Shape, computations

# They name, number or wait for what is there already.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id", "opt-barrier"),
    *("copy-done", "slice-done", "async-done", "async-update", "domain", "add-dependency"),
}
_FREE_TARGETS = {"ConcatBitcast", "AllocateBuffer", "Sharding", "AssumeGatherIndicesInBound"}
_PARTS = {"slice", "dynamic-slice", "gather"}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: str
    bytes: int
    """Of the larger of what goes in and what comes out, on a device."""
    devices: int
    """That exchange with each other."""

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least: a ring's, which no algorithm undercuts (Patarasuk and Yuan 2009)."""
        share = (self.devices - 1) / self.devices
        return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share) * self.bytes


@dataclass(frozen=True)
class Traffic:
    """What a device does in a run of a program."""

    kernels: int = 0
    bytes: int = 0
    collectives: Counter[Collective] = field(default_factory=Counter)
    unknown_loops: int = 0
    """Loops whose number of passes the program does not say; their bodies are counted once."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.kernels + other.kernels,
            self.bytes + other.bytes,
            self.collectives + other.collectives,
            self.unknown_loops + other.unknown_loops,
        )

    def __mul__(self, times: int) -> "Traffic":
        often = Counter({collective: count * times for collective, count in self.collectives.items()})
        return Traffic(self.kernels * times, self.bytes * times, often, self.unknown_loops)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Number of collectives of each kind, and their bytes."""
        found: dict[str, dict[str, int]] = {}
        for collective, count in self.collectives.items():
            entry = found.setdefault(collective.kind, {"count": 0, "bytes": 0})
            entry["count"] += count
            entry["bytes"] += count * collective.bytes
        return found

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others."""
        return sum(count * collective.sent for collective, count in self.collectives.items())


def read(text: str) -> Traffic:
    """What a compiled program (``compiled.as_text()``) does on each device."""
    return _Program(text).of(_Program.ENTRY)


def each(text: str) -> Iterator[tuple[Instruction, Traffic, int, dict[str, Instruction]]]:
    """The instructions that cost something: itself, what one run of it does, how often it runs, and those that it calls where it is a
    kernel of several.
    """
    return _Program(text).each(_Program.ENTRY)


class _Program:
    ENTRY = "ENTRY"

    def __init__(self, text: str):
        self._computations = computations(text)
        found = [re.search(rf"{name}=(\d+)", text[: text.find("\n")]) for name in ("num_partitions", "replica_count")]
        self._devices = math.prod(int(match[1]) for match in found if match)
        self._known: dict[str, Traffic] = {}

    def of(self, computation: str) -> Traffic:
        if computation not in self._known:
            around, found = self._computations[computation], Traffic()
            for one in around.values():
                entered = self._entered(one)
                found += sum((self.of(name) * times for name, times in entered), Traffic()) if entered else self._one(one, around)
                if one.opcode == "while" and not _TRIPS.search(one.rest):
                    found += Traffic(unknown_loops=1)
            self._known[computation] = found
        return self._known[computation]

    def each(self, computation: str, times: int = 1) -> Iterator[tuple[Instruction, Traffic, int, dict[str, Instruction]]]:
        around = self._computations[computation]
        for one in around.values():
            entered = self._entered(one)
            for name, passes in entered:
                yield from self.each(name, times * passes)
            if not entered and (traffic := self._one(one, around)) != Traffic():
                yield one, traffic, times, self._computations[one.called("calls")[0]] if one.opcode == "fusion" else {}

    def _entered(self, instruction: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs as they stand, and how often; of a loop that does not say how often, one pass."""
        kind = instruction.opcode
        if kind == "while":
            trips = _TRIPS.search(instruction.rest)
            return [(instruction.called(part)[0], int(trips[1]) if trips else 1) for part in ("body", "condition")]
        if kind == "conditional":
            return [(max(instruction.branches(), key=lambda name: self.of(name).bytes), 1)]
        if kind in ("call", "async-start"):
            return [((instruction.called("to_apply") or instruction.called("calls"))[0], 1)]
        return []

    def _one(self, instruction: Instruction, around: dict[str, Instruction]) -> Traffic:
        kind = instruction.opcode
        if kind in _FREE or (kind == "custom-call" and instruction.attribute("custom_call_target") in _FREE_TARGETS):
            return Traffic()
        base = kind.removesuffix("-start").removesuffix("-done")
        if base in COLLECTIVES:
            return self._exchange(base, instruction, around)
        return Traffic(kernels=1, bytes=self._moved(instruction, around))

    def _exchange(self, kind: str, instruction: Instruction, around: dict[str, Instruction]) -> Traffic:
        results = sum(shape.bytes for shape in instruction.shapes if shape.main)
        if instruction.opcode.endswith("-done"):
            return Traffic(bytes=results)
        operands = [shape for name in instruction.operands if name in around for shape in around[name].shapes]
        read = sum(shape.bytes for shape in operands if shape.main)
        devices = instruction.devices(self._devices)
        data = sum(shape.plain_bytes for shape in operands)
        whole = data * devices if kind == "all-gather" else data
        moved = Traffic(kernels=1, bytes=read + (0 if instruction.opcode.endswith("-start") else results))
        # Of a single device there is nothing to exchange.
        return moved + Traffic(collectives=Counter({Collective(kind, whole, devices): 1})) if devices > 1 else moved

    def _moved(self, instruction: Instruction, around: dict[str, Instruction]) -> int:
        kind = instruction.opcode
        results = sum(shape.bytes for shape in instruction.shapes if shape.main)
        if kind == "copy-start":
            # Destination, source, and a handle in neither.
            return results
        if kind == "slice-start":
            source, part = instruction.shapes[0], instruction.shapes[1]
            return sum(part.bytes for side in (source, part) if side.main)
        given = [around[name] for name in dict.fromkeys(instruction.operands) if name in around]
        if kind == "fusion":
            return self._fused(instruction, around, results)
        if kind in _PARTS:
            return 2 * results + sum(_main(each) for each in given[1:])
        if kind == "dynamic-update-slice":
            # In place.
            return 2 * _main(given[1])
        return results + sum(_main(each) for each in given)

    def _fused(self, instruction: Instruction, around: dict[str, Instruction], results: int) -> int:
        inside = self._computations[instruction.called("calls")[0]]
        body = _Fused(inside)
        moved = body.written(results)
        seen: set[tuple[str, int]] = set()
        for number, name in enumerate(instruction.operands):
            whole = _main(around[name]) if name in around else 0
            used = min(whole, body.read(number, whole)) if whole else 0
            if (name, used) not in seen:
                moved += used
            seen.add((name, used))
        return moved


class _Fused:
    """What a kernel of several instructions reads of its operands, and writes of its results."""

    def __init__(self, instructions: dict[str, Instruction]):
        self._instructions = instructions
        self._parameters = {each.number: each.name for each in instructions.values() if each.opcode == "parameter"}

    @cached_property
    def _users(self) -> dict[str, list[tuple[Instruction, int]]]:
        users: dict[str, list[tuple[Instruction, int]]] = {}
        for each in self._instructions.values():
            for place, name in enumerate(each.operands):
                users.setdefault(name, []).append((each, place))
        return users

    def read(self, number: int, whole: int) -> int:
        """Bytes of an operand of ``whole`` bytes: only parts of it where nothing else is looked at."""
        users = self._through_bitcasts(self._parameters[number])
        if not users:
            return whole
        found = 0
        for user, place in users:
            if user.opcode in _PARTS and place == 0:
                found += sum(shape.bytes for shape in user.shapes)
            elif not (user.opcode == "dynamic-update-slice" and place == 0):
                return whole
        return found

    def written(self, results: int) -> int:
        """Bytes of results of so many bytes: of an update in place only what is new."""
        roots = [each for each in self._instructions.values() if each.root]
        if roots and roots[0].opcode == "tuple":
            roots = [self._instructions[name] for name in roots[0].operands if name in self._instructions]
        for root in roots:
            while root.opcode == "bitcast" and root.operands[0] in self._instructions:
                root = self._instructions[root.operands[0]]
            if root.opcode == "dynamic-update-slice" and root.operands[1] in self._instructions:
                whole, new = _all(root.shapes), _all(self._instructions[root.operands[1]].shapes)
                results -= min(results, whole - new)
        return results

    def _through_bitcasts(self, name: str) -> list[tuple[Instruction, int]]:
        found = []
        for user, place in self._users.get(name, []):
            found += self._through_bitcasts(user.name) if user.opcode == "bitcast" else [(user, place)]
        return found


def _main(instruction: Instruction) -> int:
    return sum(shape.bytes for shape in instruction.shapes if shape.main)


def _all(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes)
