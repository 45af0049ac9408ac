"""Formats are told apart by content; what is none of them is named."""

import hashlib
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_writer import Tensor, write_legacy, write_zip

from resnet_jax.errors import UserError
from resnet_jax.tensors.files import open_tensors, save, sha256

FOUR = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize("begins", [b"\x80\x00", b"PK", b"\x80K"], ids=["a pickle's", "a zip file's", "neither's"])
def test_safetensors_are_known_whatever_the_length_of_their_header(tmp_path: Path, begins: bytes) -> None:
    """That length is what they begin with, and pickles begin with 0x80 as well, zip files with PK."""
    length = int.from_bytes(begins, "little")
    header = b'{"__metadata__":{"said":"yes"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + FOUR.tobytes())
    assert path.read_bytes().startswith(begins)
    found = open_tensors(path)
    assert found.metadata == {"said": "yes"}
    assert found.tensors["a"].read().tobytes() == FOUR.tobytes()


def test_the_format_is_in_the_bytes_not_in_the_name(tmp_path: Path) -> None:
    misleading = tmp_path / "weights.pth"
    save(misleading, {"w": FOUR}, {"k": "v"})
    assert open_tensors(misleading).format == "safetensors"
    with misleading.open("wb") as file:
        np.savez(file, w=FOUR)
    assert open_tensors(misleading).format == "npz"
    misleading = misleading.rename(tmp_path / "weights.safetensors")
    for write, kind in ((write_zip, "torch zip"), (write_legacy, "torch legacy")):
        write(misleading, {"w": Tensor()}, {"0": FOUR})
        file = open_tensors(misleading)
        assert (file.format, file.path) == (kind, misleading)
        np.testing.assert_array_equal(file.tensors["w"].read(), FOUR)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f.pth is empty"),
        (POINTER.encode(), "is a git-lfs pointer, not the file that it points to; fetch that with: git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Not found", "is a text file beginning with '<!DOCTYPE html>'"),
        ("Größe {".encode() * 200, "is a text file beginning with 'Größe {"),
        (b'{"a": {"b": 1}}', "is a text file beginning with"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file \(Keras, perhaps\); save its arrays with numpy\.savez"),
        (b"\x93NUMPY\x01\x00", r"is a single array without a name \(\.npy\); save arrays by name with numpy\.savez"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        (pickle.dumps({"a": 1}, 2), "is a plain Python pickle, not torch's; nothing was executed"),
        (pickle.dumps({"a": np.ones(3)}, 5), "is a plain Python pickle"),
        (bytes(100), "is of no format known here; it begins with 00 00 00 00 00 00 00 00"),
        (b"\xca\xfe\xba\xbe", "is of no format known here; it begins with ca fe ba be"),
        (b"PK\x05\x06" + bytes(18), "is a zip file without members"),
        (b"PK\x03\x04" + bytes(100), "is damaged: it begins as a zip file and has no directory"),
        ((2**60).to_bytes(8, "little") + b"{}", "is damaged: .*header"),
    ],
)
def test_what_else_a_file_is(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        open_tensors(path)
    assert str(path) in str(refused.value)
    if "damaged" not in message:
        assert "Read are safetensors, npz, and dictionaries of tensors that torch.save wrote" in str(refused.value)


def test_tar_and_foreign_zip_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(UserError, match=r"is a tar archive; unpack it, or, where torch before 0\.1\.10 wrote it"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "")
    with pytest.raises(UserError, match=r"is a zip file of config\.json, model\.weights\.h5, neither numpy's nor torch's"):
        open_tensors(path)


def test_what_is_no_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="missing does not exist"):
        open_tensors(tmp_path / "missing")
    with pytest.raises(UserError, match="is not a file but a folder or device"):
        open_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file but a folder or device"):
        open_tensors(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        open_tensors(tmp_path / ("x" * 5000))

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    save(tmp_path / "f", {"w": FOUR}, {})
    monkeypatch.setattr(Path, "open", denied)
    for function in (open_tensors, sha256):
        with pytest.raises(UserError, match="f cannot be read: Permission denied"):
            function(tmp_path / "f")


def test_sha256(tmp_path: Path) -> None:
    """The bytes abc are the first example of FIPS 180-2, Appendix B."""
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "f").write_bytes(bytes(300_000))
    assert sha256(tmp_path / "f") == hashlib.sha256(bytes(300_000)).hexdigest()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        sha256(tmp_path / "missing")
