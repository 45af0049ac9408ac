"""Which kernels a compiled program has, of which kinds, and which lines of the sources they come from."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from resnet_jax.plan import program_text
from resnet_jax.plan.instructions import Instruction, Shape

_PACKAGE = "resnet_jax/"
_COPIES = {"copy", "copy-start", "transpose"}


@dataclass(frozen=True)
class Kernel:
    """One kernel of a program."""

    kind: str
    """convolution, matrix product, reduction, copy, a collective's name, or elementwise."""
    line: str
    """``models/norms.py:88``, below the package; that of another package with its name; ? where the program does not say."""
    scope: str
    """stage1, stem, ...: the network's part; empty outside it."""
    backward: bool
    bytes: int
    """Read and written in one run."""
    times: int
    """It runs in a run of the program."""
    float32_activations: int
    """Number of its results that are activations in float32."""


class Sources:
    """Resolves ``stack_frame_id`` by the tables at a program's head; older programs name file and line in place."""

    def __init__(self, text: str):
        head = text[: text.find("ENTRY")] if "StackFrames" in text else ""
        self._files = {int(n): name for n, name in re.findall(r'^(\d+) "([^"]*)"$', _section(head, "FileNames"), re.MULTILINE)}
        places = re.findall(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)", _section(head, "FileLocations"), re.MULTILINE)
        self._places = {int(n): (int(file), int(line)) for n, file, line in places}
        frames = re.findall(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", _section(head, "StackFrames"), re.MULTILINE)
        # The parent's number is one more than it is; 1 is nobody.
        self._frames = {int(n): (int(place), int(parent or 1) - 1) for n, place, parent in frames}

    def line(self, metadata: str) -> str:
        """The innermost line of this package that made an instruction; else of what it was made by."""
        named = re.search(r'source_file="([^"]*)" source_line=(\d+)', metadata)
        if named:
            return _short(f"{named[1]}:{named[2]}")
        found = re.search(r"stack_frame_id=(\d+)", metadata)
        frame = int(found[1]) if found else 0
        lines = []
        while frame in self._frames and len(lines) < 1000:
            place, frame = self._frames[frame]
            if place in self._places:
                file, number = self._places[place]
                lines.append(f"{self._files.get(file, '?')}:{number}")
        own = [line for line in lines if _PACKAGE in line]
        return _short((own or lines or ["?"])[0])


def kernels(text: str, batch: int) -> list[Kernel]:
    """The kernels of a compiled program (``compiled.as_text()``) of a step on ``batch`` images a device."""
    sources, found = Sources(text), []
    for instruction, traffic, times, inside in program_text.each(text):
        if not traffic.kernels:
            continue
        rest = instruction.rest
        if "stack_frame_id" not in rest and "source_file" not in rest and inside:
            # A fusion that XLA made of several others: most of its instructions decide.
            often = Counter(sources.line(each.rest) for each in inside.values() if "op_name" in each.rest)
            line = often.most_common(1)[0][0] if often else "?"
            rest = next((each.rest for each in inside.values() if sources.line(each.rest) == line), rest)
        else:
            line = sources.line(rest)
        name = re.search(r'op_name="([^"]*)"', rest)
        scope = re.search(r"\b(stem|stage\d+|head)\b", name[1]) if name else None
        found.append(
            Kernel(
                kind=kind(instruction, inside),
                line=line,
                scope=scope[1] if scope else "",
                backward=bool(name and "transpose(" in name[1]),
                bytes=traffic.bytes,
                times=times,
                float32_activations=sum(_float32_activation(shape, batch) for shape in instruction.shapes),
            )
        )
    return found


def kind(instruction: Instruction, inside: dict[str, Instruction]) -> str:
    """What a kernel does; ``inside``: the instructions of a fusion."""
    opcodes = [each.opcode for each in inside.values()] or [instruction.opcode]
    target = instruction.attribute("custom_call_target")
    base = instruction.opcode.removesuffix("-start").removesuffix("-done")
    if base in program_text.COLLECTIVES:
        return base
    if "convolution" in opcodes or "conv" in target.lower():
        return "convolution"
    if "dot" in opcodes or "gemm" in target or "matmul" in target:
        return "matrix product"
    if "reduce" in opcodes or "reduce-window" in opcodes:
        return "reduction"
    moves = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "reshape", "convert", "transpose", *_COPIES}
    if set(opcodes) <= moves and set(opcodes) & {*_COPIES, "convert"}:
        return "copy or cast"
    return "elementwise"


def summary(found: list[Kernel], batch: int, steps: int = 1) -> dict[str, Any]:
    """Kernels of a step, bytes of an image, and float32 activations of a step, of a program of so many; by kind and by source line and
    direction, the dearest first.
    """
    everything = _sums(found, batch, steps)
    return {
        **everything,
        "by_kind": _grouped(found, batch, steps, "kind"),
        "by_line": _grouped(found, batch, steps, "line", "backward"),
        "by_scope": _grouped(found, batch, steps, "scope", "backward"),
    }


def _sums(found: list[Kernel], batch: int, steps: int) -> dict[str, Any]:
    return {
        "kernels": sum(each.times for each in found) / steps,
        "bytes_per_image": sum(each.times * each.bytes for each in found) / (batch * steps),
        "float32_activations": sum(each.times * each.float32_activations for each in found) / steps,
    }


def _grouped(found: list[Kernel], batch: int, steps: int, *names: str) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Kernel]] = {}
    for each in found:
        groups.setdefault(tuple(getattr(each, name) for name in names), []).append(each)
    rows = [dict(zip(names, key, strict=True)) | _sums(members, batch, steps) for key, members in groups.items()]
    return sorted(rows, key=lambda row: -row["bytes_per_image"])


def _float32_activation(shape: Shape, batch: int) -> bool:
    """Images themselves have 3 channels, or 4 with padding; what is 1x1 or 3x3 is a kernel's gradient."""
    if shape.dtype != "f32" or len(shape.sizes) < 4 or shape.sizes[-4] != batch:
        return False
    *_, height, width, channels = shape.sizes
    return channels > 4 and (height, width) not in ((1, 1), (3, 3))


def _section(head: str, name: str) -> str:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", head, re.MULTILINE)
    return found[1] if found else ""


def _short(line: str) -> str:
    if _PACKAGE in line:
        return line.rpartition(_PACKAGE)[2]
    return line.rpartition("site-packages/")[2] if "site-packages/" in line else line
