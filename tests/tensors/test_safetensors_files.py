"""Safetensors, read and written through the library; hostile headers are written by hand."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.tensors.safetensors_files import open_safetensors, save

ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


def handwritten(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """A file as the format's page describes it: 8 bytes of length, JSON, numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def test_numbers_written_by_hand_are_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"made": "by hand"},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "f": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]},
    }
    # 1.0 and -2.0 are the upper halves of their float32 patterns, 0x3f800000 and 0xc0000000.
    file = open_safetensors(handwritten(tmp_path / "f", header, struct.pack("<HHf", 0x3F80, 0xC000, 0.5)))
    assert (file.format, file.metadata, file.notes, list(file.tensors)) == ("safetensors", {"made": "by hand"}, {}, ["b", "f"])
    bfloat = file.tensors["b"]
    assert (bfloat.shape, bfloat.dtype) == ((2,), np.dtype(ml_dtypes.bfloat16))
    assert bfloat.read().dtype == bfloat.dtype
    assert bfloat.read().astype(np.float32).tolist() == [1.0, -2.0]
    assert file.tensors["f"].read().shape == ()
    assert file.tensors["f"].read().item() == 0.5


DTYPES = [
    "float64",
    "float32",
    "float16",
    ml_dtypes.bfloat16,
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_dtype_comes_back(dtype: str, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    save(tmp_path / "f", {"a": array}, {})
    stored = open_safetensors(tmp_path / "f").tensors["a"]
    assert (stored.shape, stored.dtype) == ((2, 3), array.dtype)
    np.testing.assert_array_equal(stored.read(), array)


def test_any_layout_and_byte_order_is_written(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((4, 6))
    arrays = {"transposed": drawn.T, "strided": drawn[::2, ::-1], "big": drawn.astype(">f4"), "scalar": np.array(2.0), "empty": drawn[:0]}
    save(tmp_path / "f", arrays, {"key": "värde"})
    file = open_safetensors(tmp_path / "f")
    assert file.metadata == {"key": "värde"}
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = file.tensors[name].read()
        assert read.flags.c_contiguous
        assert read.flags.writeable
        assert read.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, array)


def test_a_read_array_is_the_callers_own(tmp_path: Path) -> None:
    save(tmp_path / "f", {"a": np.ones(3)}, {})
    stored = open_safetensors(tmp_path / "f").tensors["a"]
    stored.read()[:] = 0
    assert stored.read().tolist() == [1, 1, 1]


def test_a_saved_file_is_readable_as_any_other(tmp_path: Path) -> None:
    save(tmp_path / "f", {"a": np.ones(3)}, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_save_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.safetensors"
    save(path, {"a": np.ones(3)}, {})
    before = path.read_bytes()

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.serialize_file", full)
    with pytest.raises(UserError, match=r"f\.safetensors cannot be written: .*No space left"):
        save(path, {"a": np.zeros(3)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer is complex64, which is not written; cast it to one of F64, F32"):
        save(tmp_path / "f", {"layer": np.ones(2, np.complex64)}, {})
    with pytest.raises(UserError, match="layer is object, which is not written"):
        save(tmp_path / "f", {"layer": np.array([None])}, {})
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "missing" / "f", {"layer": np.ones(2)}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [2**31, 2**60, 2**64 - 1, 50_000_000])
def test_a_header_that_claims_gigabytes_takes_no_memory(length: int, tmp_path: Path) -> None:
    path = handwritten(tmp_path / "f", ONE, b"1234", length)
    with pytest.raises(UserError, match="f is damaged: .*header"):
        open_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31]}},
        {"a": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [2**40, 0, 2**40], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0] + [1] * 64, "data_offsets": [0, 0]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"a": 3}},
        b"[" * 100_000,
        b'{"\xff": 1}',
    ],
    ids=range(12),
)
def test_hostile_headers_are_damaged_files(header: object, tmp_path: Path) -> None:
    path = handwritten(tmp_path / "f", header, b"" if "[0, 0]" in str(header) else b"1234")
    tracemalloc.start()
    with pytest.raises(UserError, match="f is damaged"):
        open_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_dtype_that_numpy_has_not_is_named(tmp_path: Path) -> None:
    path = handwritten(tmp_path / "f", {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234")
    with pytest.raises(UserError, match="the dtype of a is F8_E4M3; read are F64, F32"):
        open_safetensors(path)


def test_every_truncation_is_a_damaged_file(tmp_path: Path) -> None:
    save(tmp_path / "whole", {"a": np.ones(3), "b": np.ones((2, 2), np.float16)}, {"k": "v"})
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "cut"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut is damaged"):
            open_safetensors(path)
