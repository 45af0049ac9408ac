"""Writes torch's two formats by hand, without torch, so that hostile variants are as easy as honest ones."""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Code:
    """Instructions of a pickle, as they are."""

    code: bytes


@dataclass(frozen=True)
class Tensor:
    """A view as the pickle describes it; nothing here is checked."""

    key: str = "0"
    numel: Any = 4
    shape: Any = (4,)
    strides: Any = (1,)
    offset: Any = 0
    kind: str = "FloatStorage"


def instructions(value: Any, *, legacy: bool = False) -> bytes:
    """The instructions that leave the value on the stack."""

    def of(*values: Any) -> bytes:
        return b"".join(instructions(v, legacy=legacy) for v in values)

    match value:
        case Code():
            return value.code
        case Tensor():
            pid = ("storage", name("torch", value.kind), value.key, "cpu", value.numel, *([None] if legacy else []))
            storage = Code(of(pid) + b"Q")
            hooks = Code(name("collections", "OrderedDict").code + b")R")
            arguments = (storage, value.offset, value.shape, value.strides, False, hooks)
            return name("torch._utils", "_rebuild_tensor_v2").code + of(arguments) + b"R"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + of(*value) + b"t"
        case list():
            return b"](" + of(*value) + b"e"
        case dict():
            return b"}(" + of(*(part for item in value.items() for part in item)) + b"u"
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
    pickle: bytes | None = None,
    extra: Mapping[str, bytes] = {},
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file as torch has written since 1.6; ``pickle`` takes the place of the value's, ``extra`` are further members by full name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value) if pickle is None else pickle)
        archive.writestr("archive/byteorder", extra.get("archive/byteorder", b"little"))
        for key, storage in storages.items():
            archive.writestr(f"archive/data/{key}", storage.tobytes())
        archive.writestr("archive/version", b"3\n")
        for member, data in extra.items():
            if member != "archive/byteorder":
                archive.writestr(member, data)
    return path


def write_legacy(
    path: Path,
    value: Any,
    storages: Mapping[str, np.ndarray] = {},
    *,
    pickle: bytes | None = None,
    little_endian: Any = True,
    keys: Any = None,
    numel: Mapping[str, int] = {},
) -> Path:
    """A file as torch wrote before 1.6; ``numel`` are claims other than the storages' own."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(LEGACY_MAGIC), pickled(1001), pickled(system), pickled(value, legacy=True) if pickle is None else pickle]
    parts.append(pickled(list(storages) if keys is None else keys))
    for key, storage in storages.items():
        parts += [struct.pack("<q", numel.get(key, storage.size)), storage.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
