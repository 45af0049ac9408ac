"""Pytest plugin: whatever a test file leaves behind is an error of that file, not of a later one."""

import gc
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

_known: set[threading.Thread] = set()


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, which makes each later one cheap."""
    gc.collect()
    gc.freeze()


# Outside of all other hooks: pytest holds the log records of a test, with their tracebacks, until its teardown has ended.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Check for leaks after the last test of a file."""
    try:
        return (yield)
    finally:
        if (nextitem is None or nextitem.path != item.path) and (left := [*_unraisable(), *_threads()]):
            pytest.fail(f"{item.path.name} leaves behind:\n" + "\n".join(left), pytrace=False)


def _unraisable() -> list[str]:
    """Collect garbage, and return the exceptions of finalizers, unclosed files among them."""
    found: list[str] = []
    before = sys.unraisablehook

    def hook(report: Any) -> None:
        if report.object is None:  # not of a finalizer
            before(report)
        else:
            found.append(f"{report.exc_value!r} in {report.object!r}")

    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            gc.collect()
    finally:
        sys.unraisablehook = before
    return found


def _threads() -> list[str]:
    """Return the new threads that would keep the process from ending."""
    end = time.monotonic() + 2
    while (left := {thread for thread in threading.enumerate() if not thread.daemon} - _known - {threading.main_thread()}) and (
        time.monotonic() < end
    ):
        time.sleep(0.01)
    _known.update(left)
    return [f"thread {thread.name}" for thread in left]
