"""The directory of a zip file: what is refused before any member is read."""

import struct
import zipfile
from pathlib import Path

import pytest

from resnet_jax.errors import UserError
from resnet_jax.tensors.zip_archives import open_archive


def written(path: Path, *names: str, data: bytes = b"data") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def test_an_honest_archive_opens(tmp_path: Path) -> None:
    with open_archive(written(tmp_path / "f.zip", "a/b..c", "a/d")) as archive:
        assert archive.namelist() == ["a/b..c", "a/d"]


@pytest.mark.parametrize(
    "name", ["../../evil", "a/../../evil", "/etc/evil", "\\evil", "a\\..\\evil", "C:/evil", "..", "/evil\0harmless", "a\0/../evil"]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    # zipfile cuts names at a NUL when it writes; the bytes are put in afterwards.
    path = written(tmp_path / "f.zip", name.replace("\0", "~"))
    path.write_bytes(path.read_bytes().replace(name.replace("\0", "~").encode(), name.encode()))
    with pytest.raises(UserError, match=r"leads out of the archive \(path traversal\)"):
        open_archive(path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.zip"]


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.zip", "aaa", "bbb")
    path.write_bytes(path.read_bytes().replace(b"bbb", b"aaa"))
    with pytest.raises(UserError, match="two members are called aaa"):
        open_archive(path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.zip", "a")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # general purpose flags of the directory's entry
    path.write_bytes(data)
    with pytest.raises(UserError, match="a is encrypted"):
        open_archive(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Fifield's bomb (2019): many entries of the directory share the same bytes."""
    path = written(tmp_path / "f.zip", "a", "b", data=b"x" * 5000)
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 20 : second + 28] = struct.pack("<II", 10_000, 10_000)
    path.write_bytes(data)
    with pytest.raises(UserError, match="its members claim more than the"):
        open_archive(path)


def test_every_truncation_is_a_damaged_archive(tmp_path: Path) -> None:
    whole = written(tmp_path / "f.zip", "a", "b").read_bytes()
    path = tmp_path / "cut.zip"
    for size in range(4, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is damaged"):
            open_archive(path)
