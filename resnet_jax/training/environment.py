"""Environment of a run: commit, versions, devices."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

# Decoders and resampling filters differ by rounding between versions.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "grain", "simplejpeg", "pillow")


def commit() -> str | None:
    """Returns the commit of the checkout that this code runs from, with ``-dirty`` where files differ from it; None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed package inside another repository is not part of it.
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and those that affect numbers and speed."""
    numbers = {"python": platform.python_version()}
    for name in ("resnet-jax-lab", *PACKAGES):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = "not installed as a package"
    return numbers


def devices() -> dict[str, Any]:
    """Returns backend, kind and number of devices, and the cores of the host."""
    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "processes": jax.process_count(),
    }


def describe() -> dict[str, Any]:
    """Returns commit, versions, devices and platform, for ``environment.json``."""
    return {"commit": commit(), "versions": versions(), "devices": devices(), "platform": platform.platform()}
