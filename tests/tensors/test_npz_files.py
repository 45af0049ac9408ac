"""Npz archives: what numpy writes is read; pickles, bombs and false headers are not."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.tensors.npz_files import open_npz
from resnet_jax.tensors.stored import TensorFile
from resnet_jax.tensors.zip_archives import open_archive


def opened(path: Path) -> TensorFile:
    return open_npz(path, open_archive(path))


def with_header(path: Path, shape: str, descr: str = "'<f4'", body: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of one array ``a`` whose header is written by hand."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)
    return path


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(write, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 6))
    arrays = {
        "plain": drawn,
        "fortran": np.asfortranarray(drawn.astype(np.float32)),
        "big": drawn.astype(">f4"),
        "big_fortran": np.asfortranarray(drawn.astype(">f8")),
        "half": drawn.astype(np.float16),
        "scalar": np.array(3),
        "empty": drawn[:0],
        "mask": drawn > 0,
        "layer1/0.weight": np.arange(3, dtype=np.int8),
    }
    write(tmp_path / "f.npz", **arrays)
    file = opened(tmp_path / "f.npz")
    assert (file.format, file.metadata, file.notes, list(file.tensors)) == ("npz", {}, {}, list(arrays))
    for name, array in arrays.items():
        stored = file.tensors[name]
        read = stored.read()
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype.newbyteorder("="))
        assert (read.shape, read.dtype) == (stored.shape, stored.dtype)
        assert read.flags.c_contiguous
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)


class Marks:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_objects_are_refused_by_name_and_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", good=np.ones(2), bad=np.array([Marks(tmp_path / "ran")], dtype=object))
    with pytest.raises(UserError, match="bad holds object, not numbers; nothing was unpickled"):
        opened(tmp_path / "f.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([(1, 2.0)], "i4,f4"), np.array(["2016-06-27"], "M8[D]")])
def test_other_things_than_numbers_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=array)
    with pytest.raises(UserError, match="a holds .*, not numbers"):
        opened(tmp_path / "f.npz")


@pytest.mark.parametrize(
    "shape", ["(536870912,)", "(1152921504606846976,)", "(4, 2)", "(3,)", "(-4,)", "(2**70,)", f"({10**30},)", "(0, 9**99)"]
)
def test_a_shape_that_is_not_the_members_size_takes_no_memory(shape: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "f.npz", shape)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"f\.npz is damaged"):
        opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "descr", ["'<f999'", "'|O'", "(", "[" * 9000, "__import__('os')", "'(1000000000,)f4'", "b'\\777'", "1if 2else 3", "None"]
)
def test_hostile_headers_are_refused(descr: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is damaged|not numbers"):
        opened(with_header(tmp_path / "f.npz", "(4,)", descr))


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(100_000))
    with pytest.raises(UserError, match="the header of a cannot be read"):
        opened(path)


def test_a_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, a=np.zeros(2_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"claims 16000\d\d\d bytes out of \d+, more than weights shrink \(a zip bomb\)"):
        opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_many_small_bombs_are_one(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, **{f"a{i}": np.zeros(100_000) for i in range(10)})
    with pytest.raises(UserError, match="the archive claims"):
        opened(path)


def test_a_large_bomb_among_honest_arrays_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez_compressed(path, noise=np.random.default_rng(0).random(40_000), bomb=np.zeros(2_000_000))
    with pytest.raises(UserError, match="bomb claims"):
        opened(path)


def test_small_constant_arrays_are_no_bombs(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "f.npz", ones=np.ones(100_000))
    assert opened(tmp_path / "f.npz").tensors["ones"].read().sum() == 100_000


def test_flipped_bits_of_an_array_are_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, a=np.full(5000, 2.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    file = opened(path)
    with pytest.raises(UserError, match=r"f\.npz is damaged at a\.npy \(BadZipFile: Bad CRC"):
        file.tensors["a"].read()


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a is compressed by method 12; numpy stores or deflates"):
        opened(with_header(tmp_path / "f.npz", "(4,)", compression=zipfile.ZIP_BZIP2))


def test_a_header_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "f.npz", io.BytesIO()
    np.lib.format.write_array(data, np.ones(3), version=(3, 0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", data.getvalue())
    with pytest.raises(UserError, match=r"a has a header of version \(3, 0\)"):
        opened(path)
