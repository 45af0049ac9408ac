"""A leak is an error of the file that caused it."""

import os
import subprocess
import sys
from pathlib import Path

LEAKS = """
import asyncio
import threading


async def pending():
    try:
        await asyncio.sleep(100)
    finally:
        raise RuntimeError("lost")


def test_coroutine():
    loop = asyncio.new_event_loop()
    loop.create_task(pending())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


def test_file():
    cycle = [open(__file__)]
    cycle.append(cycle)


def test_thread():
    threading.Thread(target=threading.Event().wait, args=(3,), name="forgotten").start()
"""


def test_leaks_are_reported_against_their_file(tmp_path: Path) -> None:
    (tmp_path / "test_first.py").write_text(LEAKS)
    (tmp_path / "test_second.py").write_text("import gc\n\n\ndef test_innocent():\n    gc.collect()\n")
    command = [sys.executable, "-m", "pytest", "-p", "leaks", "-p", "no:cacheprovider", "-s", "-rA", "-W", "error", "."]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600).stdout
    assert "4 passed, 1 error" in said
    assert "ERROR test_first.py::test_thread" in said
    report = said.partition("test_first.py leaves behind:")[2]
    assert "RuntimeError('lost') in <coroutine object pending" in report
    assert "unclosed file" in report
    assert "thread forgotten" in report
