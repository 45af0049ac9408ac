"""Accelerators that this machine has, by their device files: nothing is imported, and nobody is asked."""

import glob

_FILES = {
    "an NVIDIA GPU": ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl-gpu"),  # the last two: WSL, Jetson
    "a TPU": ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"),
    "an AMD GPU": ("/dev/kfd",),
}


def accelerator() -> str | None:
    """The first kind that there is, with its article; None without any."""
    return next((name for name, patterns in _FILES.items() if any(map(glob.glob, patterns))), None)
