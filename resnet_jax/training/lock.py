"""One run at a time in a work folder: a lock that goes with its process, however that ends."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet_jax.errors import UserError


@contextlib.contextmanager
def held(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a folder, by ``flock`` on ``file`` in it.

    The kernel gives it up when the process ends, with kill -9 too; the file that is left then locks nothing. Over NFS the server does so
    when it misses the client. Where the file system has no locks, that is said, and nothing is held.

    Args:
      file: made and removed; its folder is made if missing.
      say: takes messages for the user.

    Raises:
      UserError: another process holds it, with its host, its number and since when; or the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(file, say)
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written ({error.strerror}): use another --workdir") from error
    try:
        yield
    finally:
        if descriptor is not None:
            # Before it is given up: afterwards it may be another's.
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)


def _acquired(file: Path, say: Callable[[str], None]) -> int | None:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{file.parent} is in use by {_holder(file)}: wait for it, stop it, or use another --workdir") from None
        except OSError as error:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            say(f"{file.parent} cannot be locked ({error.strerror}): see to it that no other run uses it")
            return None
        # Its last holder may have removed it between these two calls: the lock is then one of a file that nobody else will find.
        if _same(descriptor, file):
            break
        os.close(descriptor)
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode())
    return descriptor


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text())
        return f"another run, process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"  # that has not yet said who it is
