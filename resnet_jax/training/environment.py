"""Where a run took place: commit, versions, devices."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy"),
    # Decoders and resampling filters differ by rounding between versions.
    *("grain", "simplejpeg", "opencv-python-headless", "pillow"),
)


def commit() -> str | None:
    """The commit of the checkout that this code runs from, with ``-dirty`` where files differ from it; None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Installed into an environment inside somebody else's repository, the files are not that repository's.
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Python, this package and the packages that decide numbers and speed."""
    found = {"python": platform.python_version()}
    for name in ("resnet-jax-lab", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def devices() -> dict[str, Any]:
    """Backend, kind and number of devices, and the cores of the host."""
    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "processes": jax.process_count(),
    }


def describe() -> dict[str, Any]:
    """All of the above, for ``environment.json``."""
    return {"commit": commit(), "versions": versions(), "devices": devices(), "platform": platform.platform()}
