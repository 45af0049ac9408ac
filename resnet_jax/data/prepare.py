"""Writing a set into the data directory, once: the only place that may use the network."""

import importlib.util
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

from resnet_jax.data import sources
from resnet_jax.errors import UserError, nearest


def prepare(name: str, data_dir: str | None = None) -> sources.DatasetInfo:
    """Prepares a TFDS set as ArrayRecord files in the first of ``sources.data_dirs(data_dir)``; one already prepared is left as it is.

    ``digits`` needs no network; ``cifar10`` needs one, but no TensorFlow; other sets may need TensorFlow to encode their images.

    Raises:
      UserError: for an unknown name, a directory that cannot be written, a download that fails, or TensorFlow missing.
    """
    directory = sources.data_dirs(data_dir)[0]
    if name in sources.prepared_in(directory):
        return sources.describe(name, str(directory))
    existing = next(parent for parent in [directory, *directory.absolute().parents] if parent.exists())
    if not os.access(existing, os.W_OK) or not existing.stat().st_mode & 0o222:
        raise UserError(f"{directory} cannot be written: name another directory with --data-dir, or set TFDS_DATA_DIR")
    builder = _builder(name, directory)
    _reach(name)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise UserError(f"TFDS needs TensorFlow to encode {name}: pip install tensorflow, then run this command again ({error})") from error
    except Exception as error:
        # The download manager raises whatever its HTTP client does.
        raise UserError(f"{name} could not be prepared in {directory}: {type(error).__name__}: {error}") from error
    return sources.describe(name, str(directory))


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
        raise UserError(f"TFDS has no data set {name!r}{nearest(name, [*ours, *_image_sets()])}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"TFDS needs TensorFlow to prepare {name}: pip install tensorflow, then run this command again")
    return tfds.builder(name, data_dir=directory, file_format="array_record")


def _image_sets() -> list[str]:
    # For the error message: the image-classification sets that residual networks are usually trained on.
    return ["cifar100", "svhn_cropped", "imagenet2012", "oxford_flowers102", "oxford_iiit_pet", "mnist", "fashion_mnist", "imagenette"]
