"""Named arrays in safetensors, npz and torch files: torch is not needed, and nothing is executed."""

import functools
import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from resnet_jax.errors import UserError

Arrays = dict[str, np.ndarray]

_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before torch 1.6 (torch/serialization.py)
_STATE_DICTS = ("state_dict", "model", "model_state", "net", "module")
# Far above those of weights: instructions of a pickle, bytes per compressed byte, bytes of tensors per stored byte.
_MAX_INSTRUCTIONS, _MAX_COMPRESSION, _MAX_VIEWS = 2_000_000, 100, 8
# What torch.load(weights_only=True) accepts, without NEWOBJ and the strings of Python 2.
_KEYS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_IN_PLACE = {"SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD"}
_OTHERS = """NONE NEWTRUE NEWFALSE BINFLOAT EMPTY_LIST EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    PROTO MARK BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BINPERSID STOP"""
_INSTRUCTIONS = _KEYS | _IN_PLACE | set(_OTHERS.split())
_TYPES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
}
_TYPES |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
_VALUES = {
    f"torch.{name}Storage": np.dtype(getattr(ml_dtypes, dtype, dtype))
    for name, dtype in _TYPES.items()
}
_VALUES |= {f"torch.{dtype}": None for dtype in _TYPES.values()}
_CALLS = {f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter")} | {
    "torch.Size",
    "collections.OrderedDict",
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _View(NamedTuple):
    """A tensor; immutable, so that the rest of a pickle cannot change it after its check."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Returns the arrays of a file, and the metadata if it is a safetensors file; the content decides.

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
        _require(
            _MAGIC.to_bytes(10, "little") in head,
            f"is not a safetensors, npz or torch file; it begins with {ascii(head)[1:]}",
        )
        return _read_legacy(path.read_bytes()), {}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # each library has its own types for corrupt files
        raise UserError(
            f"{path} is corrupt ({type(error).__name__}: {printable(str(error).partition(chr(10))[0])})"
        ) from error


def printable(text: str) -> str:
    """Returns a name from a file in printable characters, at most 80."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else ascii(text)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise UserError(reason)


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Arrays:
    members, names, size = archive.infolist(), archive.namelist(), path.stat().st_size
    parts = [
        name.replace("\\", "/").split("/")
        for member in members
        for name in (member.filename, member.orig_filename)
    ]
    outside = any(".." in part or part[0] == "" or ":" in part[0] for part in parts)
    _require(not outside, "has a member whose name leads out of the archive (path traversal)")
    _require(len(set(names)) == len(names), "has two members of the same name")
    claimed = max(
        sum(m.compress_size for m in members) * _MAX_COMPRESSION, sum(m.file_size for m in members)
    )
    _require(
        claimed <= max(_MAX_COMPRESSION * size, 1_000_000),
        f"has members that claim more than its {size} bytes hold (a zip bomb)",
    )
    if names and all(name.endswith(".npy") for name in names):
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    _require(len(pickles) == 1, "is a zip file, but neither of npz arrays nor of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(folder + "byteorder") if folder + "byteorder" in names else b"little"
    _require(order == b"little", "was written on a big-endian machine")
    unpickler = _Unpickler(
        io.BytesIO(archive.read(pickles[0])),
        lambda key: archive.getinfo(f"{folder}data/{key}").file_size,
    )
    return _arrays(unpickler.load(), size, lambda key: archive.read(f"{folder}data/{key}"))


def _read_legacy(content: bytes) -> Arrays:
    stream, size = io.BytesIO(content), len(content)
    magic, version, system = (_Unpickler(stream).load() for _ in range(3))
    _require(magic == _MAGIC and version == 1001, "is of another version of torch's format")
    _require(
        type(system) is dict and system.get("little_endian") is True,
        "was written on a big-endian machine",
    )
    unpickler, buffers = _Unpickler(stream, lambda _: size), {}
    saved, storages = unpickler.load(), unpickler.storages
    for key in _Unpickler(stream).load():
        _require(
            type(key) is str and key in storages,
            "is corrupt: its list of storages has one that no tensor uses",
        )
        numel, begin = int.from_bytes(stream.read(8), "little", signed=True), stream.tell()
        end = stream.seek(begin + storages[key].numel * storages[key].dtype.itemsize)
        _require(
            numel == storages[key].numel and end <= size,
            "is corrupt: a storage has another size than its pickle claims",
        )
        buffers[key] = memoryview(content)[begin:end]
    return _arrays(saved, size, buffers.__getitem__)


def _arrays(saved: Any, size: int, read: Callable[[str], Any]) -> Arrays:
    """Finds the state dict in what was saved; its arrays share the memory of their storages."""
    candidates = (
        [*(saved.get(key) for key in _STATE_DICTS), saved] if isinstance(saved, dict) else []
    )
    weights = next(
        (
            c
            for c in candidates
            if isinstance(c, dict) and any(type(value) is _View for value in c.values())
        ),
        {},
    )
    _require(
        bool(weights),
        f"has no dictionary of tensors at the top or under {', '.join(_STATE_DICTS)}; save model.state_dict()",
    )
    others = [
        n
        for n, v in weights.items()
        if type(n) is not str or (isinstance(v, dict | list | tuple) and type(v) is not _View)
    ]
    _require(
        not others,
        f"has an entry {printable(str(others[:1]))} among its weights that is not a tensor with a name",
    )
    views = {name: value for name, value in weights.items() if type(value) is _View}
    claimed = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in views.values())
    _require(
        claimed <= _MAX_VIEWS * size,
        f"has tensors that claim {claimed} bytes, far more than its {size}",
    )
    data = {
        s: np.frombuffer(read(s.key) if s.numel else b"", s.dtype, s.numel)
        for s in {view.storage for view in views.values()}
    }
    return {
        name: np.lib.stride_tricks.as_strided(
            data[storage][offset:],
            shape,
            [
                stride * storage.dtype.itemsize * (n > 1)
                for n, stride in zip(shape, strides, strict=True)
            ],
            writeable=False,
        )
        for name, (storage, offset, shape, strides) in views.items()
    }


class _Unpickler(pickle.Unpickler):
    """Reads one pickle of a stream, with values of this module for torch's; ``available`` bytes are stored for a storage's key."""

    def __init__(self, stream: io.BytesIO, available: Callable[[str], int] = lambda _: 0):
        begin = stream.tell()
        _check(stream)
        super().__init__(io.BytesIO(stream.getvalue()[begin : stream.tell()]))
        self.storages: dict[str, _Storage] = {}
        self._available = available

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        known = name in _VALUES or name in _CALLS
        _require(
            known,
            f"has a pickle that imports {printable(name)}, which weights do not need; nothing was executed",
        )
        return _VALUES[name] if name in _VALUES else functools.partial(_call, name)

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, dtype, key, _, numel, *view = pid
        plain = (
            type(pid) is tuple
            and kind == "storage"
            and isinstance(dtype, np.dtype)
            and type(key) is str
            and view in ([], [None])
        )
        _require(
            plain and type(numel) is int and numel >= 0,
            "has a storage of another kind than torch's",
        )
        _require(
            numel * dtype.itemsize <= self._available(key),
            f"is corrupt: its storage {printable(key)} claims more bytes than there are",
        )
        storage = self.storages.setdefault(key, _Storage(key, dtype, numel))
        _require(
            storage == (key, dtype, numel),
            f"is corrupt: its storage {printable(key)} is described twice",
        )
        return storage


def _check(stream: io.BytesIO) -> None:
    """Follows a pickle before it is loaded, by the instruction that makes each value of its stack.

    Keys must be text or numbers: hashing deeply nested tuples overflows the C stack. BUILD may only complete an OrderedDict:
    elsewhere it sets attributes. Memo indices must be consecutive: CPython allocates up to the largest.
    """
    stack, marks, memo = [], [], []
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name, before, items, argument = (
            instruction.name,
            instruction.stack_before,
            [],
            argument or 0,
        )
        if name not in _INSTRUCTIONS or count >= _MAX_INSTRUCTIONS:
            what = (
                f"more than {_MAX_INSTRUCTIONS} instructions"
                if name in _INSTRUCTIONS
                else f"the instruction {name}"
            )
            raise UserError(
                f"has a pickle with {what}, which weights do not need; nothing was executed"
            )
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("BINPUT"):
            _require(argument <= len(memo), "is corrupt: its pickle skips entries of the memo")
            memo[argument : argument + 1] = stack[-1:]
        elif name.endswith("BINGET"):
            stack.append(memo[argument])
        else:
            if pickletools.markobject in before:
                items, before = stack[marks[-1] :], before[: before.index(pickletools.markobject)]
                del stack[marks.pop() :]
            begin = len(stack) - len(before)
            popped, stack[begin:] = stack[begin:], []
            keys = items[::2] if name == "SETITEMS" else popped[1:2] if name == "SETITEM" else []
            built = name == "BUILD" and popped[0] != "REDUCE"
            if (
                begin < (marks[-1] if marks else 0)
                or built
                or not all(key in _KEYS for key in keys)
            ):
                raise UserError(
                    "has a pickle with values, keys or attributes that weights do not need; nothing was executed"
                )
            far = (
                name == "LONG1" and abs(argument) >= 2**60
            )  # such numbers can be chosen to have equal hashes
            stack += [popped[0] if name in _IN_PLACE else "far" if far else name] * len(
                instruction.stack_after
            )


def _call(function: str, *arguments: Any) -> Any:
    """Makes the value of this module where a pickle calls one of ``_CALLS``."""
    match function.rpartition(".")[2], arguments:
        case "OrderedDict", ():
            return OrderedDict()
        case "Size", (tuple(sizes),):
            return sizes
        case "_rebuild_parameter", (_View() as view, *_):
            return view
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (
            _Storage() as storage,
            offset,
            tuple(shape),
            tuple(strides),
            *_,
        ):
            sane = len(shape) == len(strides) <= 64 and all(
                type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)
            )
            _require(sane, "is corrupt: a tensor has a shape, stride or offset that no array has")
            last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            fits = 0 in shape or (last < storage.numel and math.prod(shape) <= storage.numel)
            _require(
                fits, f"is corrupt: a tensor reaches element {last} of a storage of {storage.numel}"
            )
            return _View(storage, offset, shape, strides)
    raise UserError(f"is corrupt: its pickle calls {function} with other arguments")
