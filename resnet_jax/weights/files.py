"""Named arrays in safetensors, npz and torch files: without torch, and nothing is executed."""

import functools
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from ml_dtypes import bfloat16

from resnet_jax.errors import UserError, printable, require

Arrays = dict[str, np.ndarray]
Groups = dict[str, Arrays]
"""Named tensors of each dictionary in a file, by the keys that lead to it: ``ema.module``."""

_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # before torch 1.6 (torch/serialization.py)
# First bytes and suffixes of other kinds of files, and what converts them.
_OTHERS = {
    (b"\x89HDF", ".keras", ".h5"): "a Keras file: write keras.models.load_model(FILE).weights",
    (b"model_checkpoint_path", ".index", ".data-00000-of-00001"): (
        "a TensorFlow checkpoint: write every tf.train.load_checkpoint(FILE).get_tensor(NAME)"
    ),
    (".pb",): "a TensorFlow model: write tf.saved_model.load(FOLDER).variables",
    (".onnx",): "an ONNX file: write onnx.numpy_helper.to_array of each graph.initializer",
    (".msgpack",): "a Flax file: write flax.serialization.msgpack_restore(BYTES)",
}
# Far above those of weights: bytes of a pickle, per compressed byte, of tensors per stored byte.
_MAX_PICKLE, _MAX_COMPRESSION, _MAX_SHARING = 2**22, 100, 8
_SAFE = "weights do not need it, and nothing was executed"
_Storage = namedtuple("_Storage", "key dtype numel")
_View = namedtuple("_View", "storage offset shape strides")  # of a tensor


def read(path: Path) -> tuple[Groups, dict[str, str]]:
    """Returns the arrays of a file, by its content, and the metadata of safetensors."""
    if not os.path.exists(path) and os.path.isfile(f"{path}.index"):  # of a TensorFlow checkpoint
        path = Path(f"{path}.index")
    try:
        require(path.is_file(), "is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            head = file.read(40)
        for marks, kind in _OTHERS.items():
            fits = (path.name.endswith(m) if type(m) is str else m in head for m in marks)
            require(not any(fits), f"is {kind} with numpy.savez, named and laid out as in torch")
        if head[8:9] == b"{" and head[4:8] == bytes(4):  # behind the length of the header
            with safetensors.safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return {"": arrays}, dict(file.metadata() or {})
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(path, archive), {}
        require(_MAGIC in head, f"is no safetensors, npz or torch file: {ascii(head)[1:]}")
        return _read_legacy(path.read_bytes()), {}
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # each library has its own types for corrupt files
        raise UserError(f"{path} is corrupt: {printable(repr(error))}") from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Groups:
    members, size = archive.infolist(), path.stat().st_size
    sizes = {member.filename: member.file_size for member in members}
    require(len(sizes) == len(members), "has two members of the same name")
    require(sum(sizes.values()) <= max(_MAX_COMPRESSION * size, 10**6), "is a zip bomb")
    # For others, zipfile exceeds the claimed sizes.
    require({m.compress_type for m in members} <= {0, 8}, "is neither stored nor deflated")
    if sizes and all(name.endswith(".npy") for name in sizes):
        with np.load(path, allow_pickle=False) as file:
            return {"": dict(file)}
    pickles = [name for name in sizes if name.partition("/")[2] == "data.pkl"]
    require(len(pickles) == 1, "is a zip file, but neither of npz arrays nor of torch.save")
    require(sizes[pickles[0]] <= _MAX_PICKLE, f"has a pickle of over {_MAX_PICKLE} bytes")
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(folder + "byteorder") if folder + "byteorder" in sizes else b"little"
    require(order == b"little", "was written on a big-endian machine")
    saved = _Unpickler(io.BytesIO(archive.read(pickles[0])), {}).load()
    return _arrays(saved, size, lambda key: archive.read(f"{folder}data/{key}"))


def _read_legacy(content: bytes) -> Groups:
    stream, storages, buffers = io.BytesIO(content[:_MAX_PICKLE]), {}, {}
    _, version, system, saved, keys = (_Unpickler(stream, storages).load() for _ in range(5))
    require(version == 1001 and system["little_endian"] is True, "is of another version")
    end = stream.tell()
    for key in keys:
        require(type(key) is str and key in storages, "is corrupt: no tensor uses a storage")
        numel, size = storages[key].numel, storages[key].dtype.itemsize
        begin, end = end + 8, end + 8 + numel * size
        is_whole = content[begin - 8 : begin] == numel.to_bytes(8, "little") and end <= len(content)
        require(is_whole, "is corrupt: a storage has another size than its pickle claims")
        buffers[key] = memoryview(content)[begin:end]
    return _arrays(saved, len(content), buffers.__getitem__)


def _arrays(saved: object, size: int, read: Callable[[str], Any]) -> Groups:
    """Returns the arrays of the dictionaries in ``saved``, which share the memory of storages."""
    groups = _views(saved)
    require(bool(groups), "has no named tensors")
    views = [view for group in groups.values() for view in group.values()]
    claimed = sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in views)
    require(claimed <= _MAX_SHARING * size, f"has tensors of {claimed} bytes in a file of {size}")
    read = functools.cache(read)
    return {key: {n: _array(v, read) for n, v in group.items()} for key, group in groups.items()}


def _array(view: _View, read: Callable[[str], Any]) -> np.ndarray:
    (key, dtype, numel), offset, shape, strides = view
    # NumPy raises for a storage with fewer bytes than claimed.
    elements = np.frombuffer(read(key), dtype, numel)[offset:]
    steps = [s * dtype.itemsize * (n > 1) for n, s in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)


def _views(saved: object) -> dict[str, dict[str, _View]]:
    """Returns the named tensors of every dictionary, by the keys that lead to it."""
    groups, visited, pending = {}, set(), [("", saved)]
    for key, value in pending:  # grows
        if type(value) is _Dict and id(value) not in visited:
            visited.add(id(value))
            items = [(name, item) for name, item in value.items() if type(name) is str]
            if views := {name: item for name, item in items if type(item) is _View}:
                groups[key] = views
            pending += [(f"{key}.{name}".lstrip("."), item) for name, item in items]
    return groups


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _View:
    shape, strides = tuple(shape), tuple(strides)
    are_sizes = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    is_view = type(storage) is _Storage and are_sizes and len(shape) == len(strides) <= 64
    require(is_view, "is corrupt: a tensor has an invalid storage, shape or stride")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    fits = 0 in shape or max(last, math.prod(shape) - 1) < storage.numel
    require(fits, "is corrupt: a tensor reaches beyond its storage")
    return _View(storage, offset, shape, strides)


class _Dict(dict[Any, Any]):  # of a pickle
    def __setitem__(self, key: object, value: object) -> None:
        # Hashing deep tuples overflows the C stack, and long integers can have chosen hashes.
        is_name = type(key) is str or (type(key) is int and key.bit_length() < 60)
        require(is_name, f"has a pickle with a key that is not a name: {_SAFE}")
        super().__setitem__(key, value)


_DTYPES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": bfloat16, "Bool": "?"}
_DTYPES |= {"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1"}
_GLOBALS = {
    **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes: sizes,
    "collections.OrderedDict": lambda: _Dict(),  # without arguments, which would be hashed
}
# What torch.load(weights_only=True) accepts, without NEWOBJ and the strings of Python 2.
_INSTRUCTIONS = """PROTO MARK STOP GLOBAL REDUCE BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_LIST APPEND APPENDS
    EMPTY_DICT SETITEM SETITEMS BUILD EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"""
# Dictionaries check their keys; attributes of an OrderedDict are dropped (POP).
_REPLACED = {"EMPTY_DICT": b"ccollections\nOrderedDict\n)R", "BUILD": b"0"}


class _Unpickler(pickle.Unpickler):
    """Loads one pickle of a stream: allowed instructions, known names, unread storages."""

    def __init__(self, stream: io.BytesIO, storages: dict[str, _Storage]):
        content, code, begin = stream.getvalue(), bytearray(), stream.tell()
        for instruction, argument, _ in pickletools.genops(stream):
            name, end = instruction.name, stream.tell()
            require(name in _INSTRUCTIONS.split(), f"has the instruction {name}: {_SAFE}")
            require(name != "LONG_BINPUT" or int(argument or 0) < end, "is corrupt: a large memo")
            code += _REPLACED.get(name, content[begin:end])
            begin = end
        super().__init__(io.BytesIO(code))
        self._storages = storages

    def find_class(self, module: str, name: str, /) -> object:
        name = f"{module}.{name}"
        hint = "; save model.state_dict() in place of the model" if "resnet" in name else ""
        require(name in _GLOBALS, f"has a pickle that imports {printable(name)}: {_SAFE}{hint}")
        return _GLOBALS[name]

    def persistent_load(self, pid: object, /) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(numel), *more) if not any(more):
                self._storages[key] = storage = _Storage(key, dtype, numel)
                return storage
        raise UserError("has a storage of another kind than torch's")
