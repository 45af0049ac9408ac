"""Zip files whose directory is checked before a member is read; nothing is ever extracted."""

import zipfile
from pathlib import Path

from resnet_jax.errors import UserError
from resnet_jax.tensors.stored import shown


def open_archive(path: Path) -> zipfile.ZipFile:
    """Opens a zip file and checks its directory.

    Raises:
      UserError: for a damaged directory, members of one name, encrypted or overlapping members, and names that lead out of a folder.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        # zipfile meets damaged directories with a dozen types.
        raise UserError(f"{path} is damaged: it begins as a zip file and has no directory ({str(error)[:200]}); get it again") from error
    try:
        _check(path, archive.infolist())
    except UserError:
        archive.close()
        raise
    return archive


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        # What zipfile cuts off or replaces in ``filename`` counts too.
        for name in (member.filename, member.orig_filename):
            parts = name.replace("\\", "/").split("/")
            if name[:1] in ("/", "\\") or ".." in parts or parts[0].endswith(":"):
                raise UserError(f"{path}: the member {shown(name)} leads out of the archive (path traversal); nothing was read")
        if member.flag_bits & 1:
            raise UserError(f"{path}: the member {shown(member.filename)} is encrypted; decrypt it first")
        if member.filename in seen:
            raise UserError(f"{path}: two members are called {shown(member.filename)}: which one is meant cannot be known")
        seen.add(member.filename)
    size = path.stat().st_size
    if sum(member.compress_size for member in members) > size:
        raise UserError(f"{path} is damaged: its members claim more than the {size} bytes that it has; get it again")
