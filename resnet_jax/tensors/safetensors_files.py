"""Safetensors files, through the library of that name."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import SafetensorError

from resnet_jax.errors import UserError
from resnet_jax.tensors.stored import Stored, TensorFile, fits_an_array, shown

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def open_safetensors(path: Path) -> TensorFile:
    """Reads the header; the library checks it against the file's size.

    Raises:
      UserError: for a damaged file, and for dtypes that numpy has not.
    """
    try:
        # Kept open by the closures below; it maps the file and holds no tensor.
        file: Any = safetensors.safe_open(path, framework="numpy")
        metadata: dict[str, str] = dict(file.metadata() or {})
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (a handle, no mapping)
        described = {name: (header.get_dtype(), tuple(header.get_shape())) for name, header in headers.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {str(error)[:200]}; get it again") from error
    tensors: dict[str, Stored] = {}
    for name, (code, shape) in described.items():
        dtype = _DTYPES.get(code)
        if dtype is None:
            raise UserError(f"{path}: the dtype of {shown(name)} is {code}; read are {', '.join(_DTYPES)}")
        if not fits_an_array(shape, dtype):
            raise UserError(f"{path} is damaged: no array has the shape of {shown(name)}")
        tensors[name] = Stored(shape, dtype, partial(_read, path, file, name))
    return TensorFile(path, "safetensors", tensors, metadata, {})


def save(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all: beside its place first (``.part``), then renamed.

    Args:
      path: an existing file is replaced.
      tensors: arrays of any layout and byte order; bfloat16 is ``ml_dtypes.bfloat16``.
      metadata: travels in the file's header.

    Raises:
      UserError: for a dtype that the format has not, or where the file cannot be written.
    """
    known = set(_DTYPES.values())
    # The library is handed addresses: these arrays live until it returns. (np.ascontiguousarray would give scalars an axis.)
    arrays = {name: np.array(a, a.dtype.newbyteorder("="), order="C", copy=None) for name, a in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in known:
            raise UserError(f"{path}: {shown(name)} is {array.dtype}, which is not written; cast it to one of {', '.join(_DTYPES)}")
    part = path.with_name(path.name + ".part")
    try:
        # The library's files are their owner's alone; others are as the user's umask says.
        part.touch()
        mode = part.stat().st_mode
        safetensors.serialize_file({name: _spec(array) for name, array in arrays.items()}, part, metadata=dict(metadata))
        part.chmod(mode)
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be written: {str(error)[:200]}") from error
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged at {shown(name)}: {str(error)[:200]}; get it again") from error


def _spec(array: np.ndarray) -> Any:
    spec = getattr(safetensors, "TensorSpec", None)
    if spec is None:  # before safetensors 0.8
        return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}
    return spec(dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
