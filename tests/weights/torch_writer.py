"""Writes torch's two formats without torch, so that hostile variants are as easy as valid ones."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py


@dataclass(frozen=True)
class Code:
    """Instructions of a pickle."""

    code: bytes


@dataclass(frozen=True)
class Tensor:
    """A view as a pickle describes it, unchecked."""

    key: Any = "0"
    numel: Any = 4
    shape: Any = (4,)
    strides: Any = (1,)
    offset: Any = 0
    kind: str = "FloatStorage"


def instructions(value: Any, *, legacy: bool = False) -> bytes:
    """Returns the instructions that leave a value on the stack."""

    def each(*values: Any) -> bytes:
        return b"".join(instructions(v, legacy=legacy) for v in values)

    match value:
        case Code():
            return value.code
        case Tensor():
            pid = ("storage", name("torch", value.kind), value.key, "cpu", value.numel, *([None] if legacy else []))
            hooks = call("collections", "OrderedDict")
            arguments = (Code(each(pid) + b"Q"), value.offset, value.shape, value.strides, False, hooks)
            return call("torch._utils", "_rebuild_tensor_v2", *arguments).code
        case None | bool() | int() | float():
            return pickle.dumps(value, 2)[2:-1]  # CPython's, without protocol and STOP
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + each(*value) + b"t"
        case list():
            return b"](" + each(*value) + b"e"
        case dict():
            return b"}(" + each(*(part for item in value.items() for part in item)) + b"u"
    raise TypeError(type(value))


def name(module: str, attribute: str) -> Code:
    """GLOBAL."""
    return Code(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *arguments: Any) -> Code:
    """GLOBAL and REDUCE."""
    return Code(name(module, attribute).code + instructions(arguments) + b"R")


def pickled(value: Any, *, legacy: bool = False) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + instructions(value, legacy=legacy) + b"."


def write_zip(
    path: Path,
    value: Any,
    storages: Mapping[str, np.ndarray] = {},
    *,
    code: bytes | None = None,
    extra: Mapping[str, bytes] = {},
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file as of torch 1.6 and later; ``code`` replaces the value's pickle, ``extra`` are members by full name."""
    members = {"archive/data.pkl": pickled(value) if code is None else code, "archive/byteorder": b"little"}
    members |= {f"archive/data/{key}": storage.tobytes() for key, storage in storages.items()} | dict(extra)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


def write_legacy(
    path: Path,
    value: Any,
    storages: Mapping[str, np.ndarray] = {},
    *,
    code: bytes | None = None,
    version: int = 1001,
    little_endian: Any = True,
    keys: Any = None,
    numel: Mapping[str, int] = {},
) -> Path:
    """A file as of torch before 1.6; ``numel`` are claims that replace the storages' sizes."""
    parts = [pickled(MAGIC), pickled(version), pickled({"protocol_version": version, "little_endian": little_endian})]
    parts += [pickled(value, legacy=True) if code is None else code, pickled(list(storages) if keys is None else keys)]
    for key, storage in storages.items():
        parts += [struct.pack("<q", numel.get(key, storage.size)), storage.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
