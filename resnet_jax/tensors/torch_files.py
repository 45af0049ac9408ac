"""What ``torch.save`` writes: zip files (since torch 1.6) and the stream of pickles before them."""

import io
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.tensors import torch_pickle
from resnet_jax.tensors.state_dicts import find_state_dict
from resnet_jax.tensors.stored import Note, Stored, TensorFile, shown
from resnet_jax.tensors.torch_views import Storage, Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Tied weights share a storage, and so does every second name of an averaged network; more views would make memory out of nothing.
_MOST_VIEWS = 8
# A number beside the weights is read at once; not where it is a view of something large.
_MOST_NOTE = 4096
_CHUNK = 1 << 20


@dataclass
class _Record:
    """Where a storage's bytes lie in the file."""

    start: int
    size: int
    checksum: int | None = None
    """CRC-32 of the bytes, until it was compared once."""


def open_torch_zip(path: Path, archive: zipfile.ZipFile) -> TensorFile:
    """Reads the pickle of a zip file and finds its storages.

    Args:
      path: the same file.
      archive: has one member ``PREFIX/data.pkl``.

    Raises:
      UserError: for a damaged file, TorchScript, compressed members, big-endian numbers, and whatever ``torch_pickle.load`` refuses.
    """
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise UserError(f"{path} is damaged: it has {len(pickles)} data.pkl where torch writes one; get it again")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in members or any(name.startswith(prefix + "code/") for name in members):
        raise UserError(f"{path} is a TorchScript program, not weights; save them with torch.save(torch.jit.load(...).state_dict(), FILE)")
    for name, member in members.items():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(f"{path}: {shown(name)} is compressed, which torch does not do; get the original file")
    order = members.get(prefix + "byteorder")
    if order is not None and _member(path, archive, order, 16) != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on another")
    saved = torch_pickle.load(io.BytesIO(_member(path, archive, members[pickles[0]])), path)

    def record(storage: Storage) -> _Record | None:
        member = members.get(f"{prefix}data/{storage.key}")
        return None if member is None else _Record(_start(path, archive, member), member.file_size, member.CRC)

    return _tensor_file(path, "torch zip", saved, record)


def open_torch_legacy(path: Path) -> TensorFile:
    """Reads the pickles of the format before torch 1.6, and where the storages behind them begin.

    Raises:
      UserError: for a damaged file, big-endian numbers, and whatever ``torch_pickle.load`` refuses.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        magic, protocol, system = (torch_pickle.load(stream, path) for _ in range(3))
        if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise UserError(f"{path} is damaged: it does not begin as torch's legacy files do; get it again")
        if system.get("little_endian") is not True:
            raise UserError(f"{path} was written on a big-endian machine; save it again on another")
        saved = torch_pickle.load(stream, path)
        keys = torch_pickle.load(stream, path)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise UserError(f"{path} is damaged: its list of storages is none; get it again")
        storages = _storages(saved)
        records: dict[str, _Record] = {}
        for key in keys:
            numel = int.from_bytes(stream.read(8), "little", signed=True)
            storage = storages.get(key)
            if storage is None or storage.numel != numel or numel * storage.dtype.itemsize > len(stream) - stream.tell():
                raise UserError(f"{path} is damaged: storage {shown(key)} is not what the pickle says, or cut off; get it again")
            records[key] = _Record(stream.tell(), numel * storage.dtype.itemsize)
            stream.seek(records[key].size, io.SEEK_CUR)
    return _tensor_file(path, "torch legacy", saved, lambda storage: records.get(storage.key))


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int = -1) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(most)
    except Exception as error:
        # zipfile meets damaged members with several types.
        raise UserError(f"{path} is damaged at {shown(member.filename)} ({str(error)[:200]}); get it again") from error


def _start(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    # zipfile compares the name before the member with the directory's; it lies behind 30 bytes whose last four are two lengths.
    _member(path, archive, member, 0)
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
    return member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _storages(saved: Any) -> dict[str, Storage]:
    """Every storage in what was saved, by key; a walk that neither recursion nor loops can trap."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    waiting = [saved]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            value = value.storage
        if isinstance(value, Storage):
            found[value.key] = value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _tensor_file(path: Path, kind: str, saved: Any, record: Callable[[Storage], _Record | None]) -> TensorFile:
    weights, beside = find_state_dict(saved, path)
    size = path.stat().st_size
    claimed = sum(_bytes(tensor) for tensor in weights.values())
    if claimed > _MOST_VIEWS * size:
        raise UserError(f"{path}: its tensors claim {claimed} bytes, the file has {size}: views that make memory out of nothing")
    records: dict[str, _Record] = {}

    def stored(name: str, tensor: Tensor) -> Stored:
        storage = tensor.storage
        if storage.key not in records:
            found = record(storage)
            needed = storage.numel * storage.dtype.itemsize
            if found is None or found.size < needed or found.start + found.size > size:
                raise UserError(f"{path} is damaged: the {needed} bytes of {shown(name)} are not in it; get it again")
            records[storage.key] = found
        return Stored(tensor.shape, storage.dtype, partial(_read, path, name, tensor, records[storage.key]))

    tensors = {name: stored(name, tensor) for name, tensor in weights.items()}
    notes: dict[str, Note] = {}
    for name, value in beside.items():
        if not isinstance(value, Tensor):
            notes[name] = value
        elif value.storage.numel * value.storage.dtype.itemsize <= _MOST_NOTE:
            number = stored(name, value).read()
            notes[name] = number.astype(np.float64).item() if number.dtype.kind not in "biu" else number.item()
    return TensorFile(path, kind, tensors, {}, notes)


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.storage.dtype.itemsize


def _read(path: Path, name: str, tensor: Tensor, record: _Record) -> np.ndarray:
    dtype = tensor.storage.dtype
    if not _bytes(tensor):
        return np.empty(tensor.shape, dtype)
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    try:
        with path.open("rb") as file:
            if record.checksum is not None:
                if _checksum(file, record) != record.checksum:
                    raise UserError(f"{path} is damaged at {shown(name)}: its checksum is another; get it again")
                record.checksum = None
            file.seek(record.start + tensor.offset * dtype.itemsize)
            data = file.read((reach + 1) * dtype.itemsize)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != (reach + 1) * dtype.itemsize:
        raise UserError(f"{path} became shorter since it was opened")
    steps = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(np.frombuffer(data, dtype), tensor.shape, steps).copy()


def _checksum(file: io.BufferedReader, record: _Record) -> int:
    file.seek(record.start)
    checksum, left = 0, record.size
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            break
        checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum
