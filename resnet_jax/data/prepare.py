"""Writing a set into the data directory, once: the only place that may use the network."""

import importlib.util
import os
import re
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.data import sources
from resnet_jax.errors import UserError, nearest


def prepare(
    name: str,
    data_dir: str | None = None,
    *,
    archives: Path | None = None,
    resize: int | None = None,
    filter: str | None = None,
    quality: int | None = None,
) -> sources.DatasetInfo:
    """Prepares a TFDS set as ArrayRecord files in the first of ``sources.data_dirs(data_dir)``; what is there is left as it is.

    ``digits`` needs no network; ``cifar10`` needs one, and ``imagenet2012`` archives fetched by hand, but no TensorFlow; others may
    need it to encode their images.

    Args:
      name: of the set; with ``resize`` also the path of a folder.
      data_dir: where to.
      archives: folder of the archives of ``imagenet2012``.
      resize: pixels of the shorter side: makes a smaller copy, see ``resized``, of a set that is prepared already.
      filter: of the copy, as ``resized.Resize`` has it where not given.
      quality: of the copy's JPEGs; likewise.

    Raises:
      UserError: for an unknown name, a directory that cannot be written, or has too little room, a download that fails, archives that are
        missing or damaged, or TensorFlow missing. Nothing is left behind then.
    """
    directory = sources.data_dirs(data_dir)[0]
    if archives is not None and (name != "imagenet2012" or resize is not None):
        what = f"{name} has none" if resize is None else "a smaller copy is made of the prepared set"
        raise UserError(f"--from is the folder of ImageNet's archives, and {what}: leave it out")
    chosen = {"filter": filter, "quality": quality}
    given = {option: value for option, value in chosen.items() if value is not None}
    if resize is not None:
        return _resized(sources.describe(name, data_dir), directory, {"side": resize} | given)
    if given:
        raise UserError(f"--{next(iter(given))} is that of a smaller copy: give --resize with it, as --resize 256")
    if sources.is_folder(name):
        raise UserError(f"{name} is a folder: it is read where it lies and needs no preparation; --resize 256 makes a smaller copy")
    if name in sources.prepared_in(directory):
        return sources.describe(name, str(directory))
    _check_writable(directory)
    if name == "imagenet2012":
        from resnet_jax.data import imagenet

        found = imagenet.check_files(archives)
        check_room(directory / name, imagenet.bytes_written())
        imagenet.check_digests(found)
        builder = imagenet.Imagenet2012(archives=found, data_dir=directory, file_format="array_record")
    else:
        builder = _builder(name, directory)
        _reach(name)
    _written(name, directory, builder.download_and_prepare)
    return sources.describe(name, str(directory))


def _resized(source: sources.DatasetInfo, directory: Path, options: dict[str, Any]) -> sources.DatasetInfo:
    from resnet_jax.data import resized

    resize = resized.Resize(**options)
    made = resized.name_of(source, resize.side)
    there = sources.prepared_in(directory).get(made)
    if there is None:
        _check_writable(directory)
        check_room(directory / made, resized.bytes_written(source, resize))
        _written(made, directory, lambda: resized.prepare(source, resize, directory))
    else:
        resized.check_same(source, resize, there)
    return sources.describe(made, str(directory))


def check_room(folder: Path, needed: int) -> None:
    """Looks whether a set fits on the disk, and says on stderr what an earlier attempt at it left there.

    Args:
      folder: of the set, ``DATA_DIR/NAME``, which need not exist.
      needed: bytes.

    Raises:
      UserError: where it does not fit.
    """
    # A killed preparation leaves NAME/incomplete.XYZ_VERSION behind; one that is at work looks the same, so we delete none.
    left = ""
    for attempt in sorted(folder.glob("incomplete.*")):
        size = sum(file.stat().st_size for file in attempt.iterdir())
        left += f"; {attempt} ({size / 1e9:.1f} GB) is from a preparation that was cut off: delete it, unless one is at work"
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder.parent} has room for {free / 1e9:.1f} GB, and {folder.name} needs {needed / 1e9:.1f} GB while it is written: "
            f"name another directory with --data-dir{left}"
        )
    if left:
        print(f"resnet-jax: {left[2:]}", file=sys.stderr)


def _check_writable(directory: Path) -> None:
    existing = next(parent for parent in [directory, *directory.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK) or not existing.stat().st_mode & 0o222:
        raise UserError(f"{directory} cannot be written: name another directory with --data-dir, or set TFDS_DATA_DIR")


def _written(name: str, directory: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"TFDS needs TensorFlow to encode {name}: pip install tensorflow, then run this command again ({error})") from error
    except Exception as error:
        # The download manager raises whatever its HTTP client does, the writer what the disk does.
        raise UserError(f"{name} could not be prepared in {directory}: {type(error).__name__}: {error}") from error


# Where the sets that we know come from. Without a network TFDS tries for 204 seconds before it gives up.
_HOSTS = {"cifar10": "www.cs.toronto.edu"}


def _reach(name: str) -> None:
    host = _HOSTS.get(name)
    if host is None or urllib.request.getproxies().get("https"):
        return
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"{name} is downloaded from {host}, which cannot be reached ({error}): prepare it where it can, and copy the folder "
            f"{name}/ into the data directory"
        ) from error


def _builder(name: str, directory: Path) -> Any:
    import tensorflow_datasets as tfds

    from resnet_jax.data.cifar10 import Cifar10
    from resnet_jax.data.digits import Digits

    ours = {"digits": Digits, "cifar10": Cifar10}
    if name in ours:
        return ours[name](data_dir=directory, file_format="array_record")
    if name not in tfds.list_builders(with_community_datasets=False):
        if copy := re.fullmatch(r"(\w+)_(\d+)", name):
            raise UserError(f"TFDS has no data set {name!r}; for a smaller copy run: resnet-jax prepare {copy[1]} --resize {copy[2]}")
        raise UserError(f"TFDS has no data set {name!r}{nearest(name, [*ours, *_image_sets()])}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"TFDS needs TensorFlow to prepare {name}: pip install tensorflow, then run this command again")
    return tfds.builder(name, data_dir=directory, file_format="array_record")


def _image_sets() -> list[str]:
    # For the error message: the image-classification sets that residual networks are usually trained on.
    return ["cifar100", "svhn_cropped", "imagenet2012", "oxford_flowers102", "oxford_iiit_pet", "mnist", "fashion_mnist", "imagenette"]
