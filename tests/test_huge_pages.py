"""Huge pages are asked for where the kernel leaves that to programs, once, and with the words of the command that was given."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax import huge_pages

# 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB.
TOUCHES = """
import ctypes, json, os, resource, sys
from resnet_jax import huge_pages
huge_pages.start_with()
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
size = 64 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
ctypes.memset(malloc(size), 1, size)
print(json.dumps([sys.argv[1:], os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


@pytest.fixture
def advised(tmp_path: Path) -> Path:
    kernel = tmp_path / "enabled"
    kernel.write_text("always [madvise] never\n")
    return kernel


@pytest.fixture
def glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)


@pytest.mark.usefixtures("glibc")
def test_what_is_set_already_stays(advised: Path) -> None:
    assert huge_pages.setting({}, advised) == "glibc.malloc.hugetlb=1"
    assert huge_pages.setting({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, advised) == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    for own in ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2:glibc.malloc.check=0"):
        assert huge_pages.setting({"GLIBC_TUNABLES": own}, advised) is None


@pytest.mark.usefixtures("glibc")
@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_a_kernel_that_does_not_listen_is_not_asked(mode: str | None, tmp_path: Path) -> None:
    kernel = tmp_path / "enabled"
    if mode is not None:
        kernel.write_text(mode)
    assert huge_pages.setting({}, kernel) is None


@pytest.mark.parametrize("library", ["glibc 2.34", "musl 1.2.5", "", ValueError("unrecognized configuration name")])
def test_another_c_library_is_not_asked(library: str | ValueError, advised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def confstr(name: str) -> str:
        if isinstance(library, ValueError):
            raise library
        return library

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    assert huge_pages.setting({}, advised) is None


def test_a_command_begins_again_once_with_its_own_words() -> None:
    """The same process by its number, and by its arguments; then memory comes in huge pages."""
    if huge_pages.setting({}) is None or resource.getpagesize() != 4096:
        pytest.skip("this kernel does not leave huge pages of 2 MiB to programs, or there is another C library")

    def run(tunables: str) -> tuple[list[str], bool, int]:
        command = [sys.executable, "-c", TOUCHES, "--name", "two words"]
        with subprocess.Popen(command, env=os.environ | {"GLIBC_TUNABLES": tunables}, stdout=subprocess.PIPE, text=True) as child:
            words, number, faults = json.loads(child.communicate(timeout=120)[0])
        assert child.returncode == 0
        return words, number == child.pid, faults

    small, large = run("glibc.malloc.hugetlb=0"), run("")
    assert small[:2] == large[:2] == (["--name", "two words"], True)
    assert small[2] > 16_000
    assert large[2] < 1_000
