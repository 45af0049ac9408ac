"""One run in a folder at a time, and never a folder that nobody can use again."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import lock

HOLDER = """
import sys
from pathlib import Path
from resnet_jax.training import lock
with lock.held(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.lock"


@pytest.fixture
def holder(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_is_taken_again_and_leaves_nothing(file: Path) -> None:
    for _ in range(2):
        with lock.held(file, pytest.fail):
            assert file.is_file()
        assert list(file.parent.iterdir()) == []


def test_second_holder_is_refused_and_told_who_the_first_is(file: Path, holder: subprocess.Popen[str]) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError) as error, lock.held(file, pytest.fail):
        pytest.fail("it is held")
    who = f"{re.escape(str(file.parent))} is in use by another run, process {holder.pid} on {re.escape(socket.gethostname())} since "
    assert re.match(who + r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d: .*--workdir", str(error.value))
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="is in use"), lock.held(file, pytest.fail):
        pytest.fail("a refusal gives nothing up")


def test_same_process_does_not_hold_it_twice(file: Path) -> None:
    """Two threads, or a study that names a folder twice."""
    with lock.held(file, pytest.fail), pytest.raises(UserError, match=f"process {os.getpid()} on"), lock.held(file, pytest.fail):
        pytest.fail("it is held")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_goes_with_its_process_however_that_ends(file: Path, holder: subprocess.Popen[str], number: int) -> None:
    """The file that it leaves locks nothing, and goes in the end."""
    holder.send_signal(number)
    holder.wait()
    assert file.exists()
    with lock.held(file, pytest.fail):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_lock_is_given_up_where_the_run_fails(file: Path) -> None:
    with pytest.raises(RuntimeError), lock.held(file, pytest.fail):
        raise RuntimeError
    with lock.held(file, pytest.fail):
        pass


@pytest.mark.parametrize("content", ["", "[]", '{"host": "a'], ids=["empty", "of another kind", "cut off"])
def test_holder_that_has_not_said_who_it_is_is_another_run(file: Path, holder: subprocess.Popen[str], content: str) -> None:
    file.write_text(content)
    with pytest.raises(UserError, match="is in use by another run: "), lock.held(file, pytest.fail):
        pytest.fail("it is held")


def test_file_that_its_last_holder_removes_meanwhile_is_not_the_lock(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened before it was removed, and locked afterwards: the next one would make another file and hold that."""
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            file.unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock.held(file, pytest.fail):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(UserError, match="is in use"), lock.held(file, pytest.fail):
            pytest.fail("it is held")


def test_file_system_without_locks_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is claimed that is not so, and nothing is left."""

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    messages: list[str] = []
    with lock.held(file, messages.append):
        assert list(file.parent.iterdir()) == []
    assert messages == [f"{file.parent} cannot be locked (No locks available): see to it that no other run uses it"]


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--workdir"), lock.held(tmp_path / "file" / "run.lock", pytest.fail):
        pytest.fail("it cannot be held")
