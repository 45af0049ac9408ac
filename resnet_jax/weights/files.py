"""Named arrays in safetensors, npz and torch files: without torch, and nothing is executed."""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import safetensors
from ml_dtypes import bfloat16

from resnet_jax.errors import UserError

Arrays = dict[str, np.ndarray]

_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # before torch 1.6 (torch/serialization.py)
_STATE_DICTS = ("state_dict", "model", "model_state", "net", "module")
# Far above those of weights: bytes of a pickle, per compressed byte, of tensors per stored byte.
_MAX_PICKLE, _MAX_COMPRESSION, _MAX_SHARING = 2**24, 100, 8


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Returns the arrays of a file, by its content, and the metadata of safetensors.

    Raises:
      UserError: if the file is missing, corrupt, of another format, or holds more than weights.
    """
    try:
        _require(path.is_file(), "is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            head = file.read(40)
        if head[8:9] == b"{" and head[4:8] == bytes(4):  # behind the length of the header
            with safetensors.safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return arrays, dict(file.metadata() or {})
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(path, archive), {}
        _require(_MAGIC in head, f"is no safetensors, npz or torch file: {ascii(head)[1:]}")
        return _read_legacy(path.read_bytes()), {}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # each library has its own types for corrupt files
        raise UserError(f"{path} is corrupt: {printable(repr(error))}") from error


def printable(text: str) -> str:
    """Returns a name from a file in printable characters, at most 80."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else ascii(text)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise UserError(reason)


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Arrays:
    members, size = archive.infolist(), path.stat().st_size
    sizes = {member.orig_filename: member.file_size for member in members}
    parts = [name.replace("\\", "/").split("/") for name in sizes]
    outside = any(".." in part or not part[0] or ":" in part[0] for part in parts)
    _require(not outside, "has a member outside of the archive (path traversal)")
    _require(len(sizes) == len(members), "has two members of the same name")
    _require(sum(sizes.values()) <= max(_MAX_COMPRESSION * size, 10**6), "is a zip bomb")
    # For others, zipfile exceeds the claimed sizes.
    _require({m.compress_type for m in members} <= {0, 8}, "is neither stored nor deflated")
    if sizes and all(name.endswith(".npy") for name in sizes):
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    pickles = [name for name in sizes if name.partition("/")[2] == "data.pkl"]
    _require(len(pickles) == 1, "is a zip file, but neither of npz arrays nor of torch.save")
    _require(sizes[pickles[0]] <= _MAX_PICKLE, f"has a pickle of over {_MAX_PICKLE} bytes")
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(folder + "byteorder") if folder + "byteorder" in sizes else b"little"
    _require(order == b"little", "was written on a big-endian machine")
    saved = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    return _arrays(saved, size, lambda key: archive.read(f"{folder}data/{key}"))


def _read_legacy(content: bytes) -> Arrays:
    stream = io.BytesIO(content[:_MAX_PICKLE])
    unpickler, buffers = _Unpickler(stream), {}
    _, version, system, saved, keys = (unpickler.load() for _ in range(5))
    is_known = version == 1001 and system["little_endian"] is True
    _require(is_known, "is of another version, or big-endian")
    storages, end = unpickler.storages, stream.tell()
    for key in keys:
        _require(type(key) is str and key in storages, "is corrupt: no tensor uses a storage")
        numel, size = storages[key].numel, storages[key].dtype.itemsize
        begin, end = end + 8, end + 8 + numel * size
        is_whole = content[begin - 8 : begin] == numel.to_bytes(8, "little") and end <= len(content)
        _require(is_whole, "is corrupt: a storage has another size than its pickle claims")
        buffers[key] = memoryview(content)[begin:end]
    return _arrays(saved, len(content), buffers.__getitem__)


def _arrays(saved: Any, size: int, read: Callable[[str], Any]) -> Arrays:
    """Returns the arrays of the state dict in ``saved``; they share the memory of storages."""
    candidates = [*map(saved.get, _STATE_DICTS), saved] if type(saved) is dict else []
    dicts = [c for c in candidates if type(c) is dict and _View in map(type, c.values())]
    _require(bool(dicts), f"has no named tensors at the top or under {', '.join(_STATE_DICTS)}")
    for name, value in dicts[0].items():
        if type(name) is not str or type(value) in (dict, list, tuple):
            raise UserError(f"has an entry {printable(str([name]))} that is no named tensor")
    views = {name: value for name, value in dicts[0].items() if type(value) is _View}
    claimed = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in views.values())
    _require(claimed <= _MAX_SHARING * size, f"has tensors of {claimed} bytes in a file of {size}")
    buffers = {key: read(key) for key in {view.storage.key for view in views.values()}}
    arrays = {}
    for name, ((key, dtype, numel), offset, shape, strides) in views.items():
        # NumPy raises for a storage with fewer bytes than claimed.
        elements = np.frombuffer(buffers[key], dtype, numel)[offset:]
        steps = [s * dtype.itemsize * (n > 1) for n, s in zip(shape, strides, strict=True)]
        arrays[name] = np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)
    return arrays


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    shape, strides = tuple(shape), tuple(strides)
    are_sizes = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    is_view = type(storage) is _Storage and are_sizes and len(shape) == len(strides) <= 64
    _require(is_view, "is corrupt: a tensor has an invalid storage, shape or stride")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    fits = 0 in shape or max(last, math.prod(shape) - 1) < storage.numel
    _require(fits, "is corrupt: a tensor reaches beyond its storage")
    return _View(storage, offset, shape, strides)


_DTYPES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": bfloat16, "Bool": "?"}
_DTYPES |= {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1"}
_GLOBALS: dict[str, Any] = {
    **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes: sizes,
    "collections.OrderedDict": lambda: {},  # noqa: PIE807  # dict would hash arguments
}
# What torch.load(weights_only=True) accepts, without NEWOBJ and the strings of Python 2.
_INSTRUCTIONS = """PROTO MARK STOP GLOBAL REDUCE BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_LIST APPEND APPENDS
    EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"""
_CODES = [getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()]
_SAFE = "weights do not need it, and nothing was executed"


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: its instructions are a table, and claims do not allocate memory."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}"
        _require(name in _GLOBALS, f"has a pickle that imports {printable(name)}: {_SAFE}")
        return _GLOBALS[name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(numel), *more) if not any(more):
                self.storages[key] = storage = _Storage(key, dtype, numel)
                return storage
        raise UserError("has a storage of another kind than torch's")

    def _reject(self) -> None:
        raise UserError(f"has a pickle with an instruction beyond weights': {_SAFE}")

    def _update(self: Any, *items: Any) -> None:
        # Hashing deep tuples overflows the C stack, and long integers can have chosen hashes.
        are = [type(k) is str or (type(k) is int and k.bit_length() < 60) for k in items[::2]]
        _require(all(are), f"has a pickle with a key that is no name: {_SAFE}")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **dict.fromkeys(pickle._Unpickler.dispatch, _reject),
        **{code: pickle._Unpickler.dispatch[code] for code in _CODES},
        pickle.SETITEM[0]: lambda self: self._update(self.stack.pop(-2), self.stack.pop()),
        pickle.SETITEMS[0]: lambda self: self._update(*self.pop_mark()),
        pickle.BUILD[0]: lambda self: self.stack.pop(),  # attributes of an OrderedDict
    }
