"""Weight files, whatever wrote them: told apart by what is in them, not by what they are called."""

import hashlib
from pathlib import Path

from resnet_jax.errors import UserError
from resnet_jax.tensors.npz_files import open_npz
from resnet_jax.tensors.safetensors_files import open_safetensors, save
from resnet_jax.tensors.stored import Stored, TensorFile, shown
from resnet_jax.tensors.torch_files import LEGACY_MAGIC, open_torch_legacy, open_torch_zip
from resnet_jax.tensors.zip_archives import open_archive

__all__ = ["Stored", "TensorFile", "open_tensors", "save", "sha256"]

READ = "Read are safetensors, npz, and dictionaries of tensors that torch.save wrote"


def open_tensors(path: Path) -> TensorFile:
    """Learns names, shapes and dtypes of a file's arrays; their bytes are read one array at a time, by ``Stored.read``.

    Nothing in the file is executed. What it claims is compared with its size before memory is taken.

    Args:
      path: a file of one of four formats: safetensors, npz, torch zip, torch legacy.

    Raises:
      UserError: for a missing, unreadable or damaged file, another format (with what was found), and whatever is not plain numbers.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} {'is not a file but a folder or device' if path.exists() else 'does not exist'}. {READ}")
        with path.open("rb") as file:
            head = file.read(512)
        # A safetensors file begins with the length of its header, whose first bytes may be anything, a zip file's or a pickle's too.
        if head[4:8] == bytes(4) and head[8:9] == b"{":
            return open_safetensors(path)
        if head.startswith(b"PK\x03\x04"):
            return _open_zip(path)
        if head.startswith(b"\x80"):
            return _open_pickle(path, head)
        other = _other_format(head)
        if other:
            raise UserError(f"{path} {other}. {READ}")
        return open_safetensors(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The file's SHA-256 in 64 hexadecimal digits.

    Raises:
      UserError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_zip(path: Path) -> TensorFile:
    archive = open_archive(path)
    names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        try:
            return open_npz(path, archive)
        except UserError:
            archive.close()
            raise
    with archive:
        if any(name.endswith("/data.pkl") for name in names):
            return open_torch_zip(path, archive)
    listed = ", ".join(shown(name) for name in names[:5]) or "nothing"
    raise UserError(f"{path} is a zip file of {listed}, neither numpy's nor torch's. {READ}")


def _open_pickle(path: Path, head: bytes) -> TensorFile:
    if LEGACY_MAGIC.to_bytes(10, "little") in head[:32]:
        return open_torch_legacy(path)
    advice = "if you trust it, unpickle it and save its arrays with numpy.savez or safetensors.numpy.save_file"
    raise UserError(f"{path} is a plain Python pickle, not torch's; nothing was executed; {advice}. {READ}")


def _other_format(head: bytes) -> str | None:
    """What a file that is neither zip nor pickle is, to be read after its name; None where it may be safetensors."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a git-lfs pointer, not the file that it points to; fetch that with: git lfs pull"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "is an HDF5 file (Keras, perhaps); save its arrays with numpy.savez"
    if head.startswith(b"\x93NUMPY"):
        return "is a single array without a name (.npy); save arrays by name with numpy.savez"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it, or, where torch before 0.1.10 wrote it, load and save it again with a later torch"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; decompress it"
    if head.startswith(b"PK"):
        return "is a zip file without members"
    text = head.decode("utf-8", "ignore")
    # A cut character at the end is all that may be missing.
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text):
        return f"is a text file beginning with {shown(text.strip().split(chr(10))[0])!r}"
    if head[8:9] != b"{":
        return f"is of no format known here; it begins with {head[:8].hex(' ')}"
    return None
