"""Large arrays in huge pages. On CPU what a step needs for a while is one array, which XLA asks of the system anew in every step: of pages
of 4 KiB ResNet-56 at batch 128 takes 150,000, of 2 MiB 300. The C library asks the kernel for them where ``glibc.malloc.hugetlb=1``.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# glibc 2.35 brought the tunable.
_SINCE = (2, 35)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def setting(variables: Mapping[str, str] = os.environ, kernel: Path = _KERNEL) -> str | None:
    """What ``GLIBC_TUNABLES`` has to be for huge pages; None where it makes no difference (the kernel gives them to all, or to none, or
    there is another C library), and where it says something of them already.
    """
    said = variables.get(VARIABLE, "")
    if _TUNABLE in said or not _asks_glibc():
        return None
    try:
        advised = "[madvise]" in kernel.read_text()
    except OSError:
        return None
    return ":".join(filter(None, (said, f"{_TUNABLE}=1"))) if advised else None


def start_with() -> None:
    """Begins this process again with that variable, which the C library reads once, when a process starts. Returns where it is as it is to
    be. Before anything is written, or any thread is started.
    """
    wanted = setting()
    if wanted is not None and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: wanted})


def described(variables: Mapping[str, str] = os.environ) -> str:
    """For ``doctor``: by whom large arrays get huge pages, or what to export."""
    wanted = setting(variables)
    if wanted is not None:
        return f"not asked for: export {VARIABLE}={wanted}"
    return f"{VARIABLE}={variables[VARIABLE]}" if _TUNABLE in variables.get(VARIABLE, "") else "left to the kernel"


def _asks_glibc() -> bool:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):  # not Linux, or another C library
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= _SINCE
