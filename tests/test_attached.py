"""Which accelerator a machine has is read from its device files."""

import fnmatch
import glob

import pytest

from resnet_jax import attached


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ((), None),
        (("/dev/null", "/dev/vfio/vfio", "/dev/nvram"), None),
        (("/dev/nvidia0", "/dev/nvidiactl"), "an NVIDIA GPU"),
        (("/dev/accel0",), "a TPU"),
        (("/dev/vfio/vfio", "/dev/vfio/3"), "a TPU"),
        (("/dev/kfd",), "an AMD GPU"),
    ],
)
def test_device_files_say_what_is_attached(there: tuple[str, ...], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(there, pattern))
    assert attached.accelerator() == expected
