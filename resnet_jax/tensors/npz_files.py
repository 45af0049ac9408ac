"""Numpy's npz archives, without pickles."""

import io
import math
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.tensors.stored import Stored, TensorFile, fits_an_array, shown

# Numpy's own limit of a header that is not trusted, and the magic and length before it.
_MOST_HEADER = 10_000 + 12
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Deflate reaches 1000; weights do not reach 2, constant arrays do, and small ones harm nobody.
_MOST_EXPANSION = 100
_SMALL = 1_000_000


def open_npz(path: Path, archive: zipfile.ZipFile) -> TensorFile:
    """Reads the header of every member.

    Args:
      path: for messages.
      archive: its members are all ``NAME.npy``; stays open as long as the arrays can be read.

    Raises:
      UserError: for a damaged header, a dtype other than numbers, a size that is not its shape's, and zip bombs.
    """
    members = archive.infolist()
    claimed, held = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if claimed > _SMALL and claimed > _MOST_EXPANSION * held:
        raise _bomb(path, "the archive", claimed, held)
    tensors: dict[str, Stored] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: {shown(name)} is compressed by method {member.compress_type}; numpy stores or deflates")
        if member.file_size > _SMALL and member.file_size > _MOST_EXPANSION * member.compress_size:
            raise _bomb(path, shown(name), member.file_size, member.compress_size)
        shape, fortran, dtype, start = _header(path, archive, member, name)
        if dtype.kind not in "biufc":
            raise UserError(f"{path}: {shown(name)} holds {shown(str(dtype))}, not numbers; nothing was unpickled. Save numbers alone")
        if not fits_an_array(shape, dtype) or start + math.prod(shape) * dtype.itemsize != member.file_size:
            raise UserError(f"{path} is damaged: the size of {shown(name)} is not that of its shape {shown(str(shape))}; get it again")
        native = dtype.newbyteorder("=")
        tensors[name] = Stored(shape, native, partial(_read, path, archive, member, start, (shape, fortran, dtype)))
    return TensorFile(path, "npz", tensors, {}, {})


def _bomb(path: Path, what: str, claimed: int, held: int) -> UserError:
    return UserError(f"{path}: {what} claims {claimed} bytes out of {held}, more than weights shrink (a zip bomb); nothing was read")


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    try:
        with archive.open(member) as file, warnings.catch_warnings():
            # Of headers that Python 2 wrote, and of literals that no one wrote.
            warnings.simplefilter("ignore")
            begin = io.BytesIO(file.read(_MOST_HEADER))
            version = np.lib.format.read_magic(begin)
            if version not in _READERS:
                raise UserError(f"{path}: {shown(name)} has a header of version {version}; read are those of plain numbers, 1.0 and 2.0")
            shape, fortran, dtype = _READERS[version](begin)
    except UserError:
        raise
    except Exception as error:
        # zipfile, zlib, numpy, the tokenizer and the parser each raise their own; all mean the same to the reader.
        raise UserError(f"{path} is damaged: the header of {shown(name)} cannot be read ({_one_line(error)}); get it again") from error
    return shape, fortran, dtype, begin.tell()


def _read(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int, header: tuple[tuple[int, ...], bool, np.dtype]
) -> np.ndarray:
    shape, fortran, dtype = header
    try:
        # To the end, where zipfile compares the checksum.
        with archive.open(member) as file:
            data = file.read()
        flat = np.frombuffer(data, dtype, math.prod(shape), start)
    except Exception as error:
        raise UserError(f"{path} is damaged at {shown(member.filename)} ({_one_line(error)}); get it again") from error
    array = flat.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
