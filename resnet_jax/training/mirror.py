"""A run's folder on an object store: the run writes to a folder of this machine, and what is complete there is sent, in the background.

An object store can neither append nor rename, and Orbax 0.12.8 writes arrays to S3 not at all. A checkpoint is there when its seal is.
"""

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError

EXTRAS = {"gs": "gs", "s3": "s3"}
"""Extras of the distribution by the schemes of URLs."""

LOCK = "run.lock"
"""Of this machine; never sent."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9]+):/{1,2}(?P<path>[^/].*)")

# Relative path in the folder, size and time of the last change: what tells that a file has changed.
Files = dict[str, tuple[int, int]]


def is_remote(path: Path | str) -> bool:
    """Whether a path is a URL; ``Path`` makes one slash of its two."""
    return _URL.fullmatch(str(path)) is not None


class Mirror:
    """One run's folder, on a store and here.

    Args:
      url: gs://BUCKET/RUN or s3://BUCKET/RUN. Credentials and endpoints are those of gcsfs and s3fs.

    Raises:
      UserError: for another scheme, and where what reads it is not installed.
    """

    def __init__(self, url: Path | str):
        match = _URL.fullmatch(str(url))
        assert match
        scheme, path = match["scheme"], match["path"].rstrip("/")
        if scheme not in EXTRAS:
            raise UserError(f"{scheme}:// is not known; use {' or '.join(f'{known}://' for known in EXTRAS)}, or a folder")
        try:
            import fsspec

            self._store: Any = fsspec.filesystem(scheme)
        except ImportError as error:
            raise UserError(f"{scheme}:// needs more packages: pip install 'resnet-jax-lab[{EXTRAS[scheme]}]'") from error
        self.url, self._root = f"{scheme}://{path}", path
        staging = Path(os.environ.get("RESNET_JAX_STAGING") or Path.home() / ".cache" / "resnet_jax" / "staging")
        self.folder = staging / scheme / path
        self._copies = staging / "read" / scheme / path
        self._sent: Files = {}

    def fetch(self) -> None:
        """Makes the folder here what it is on the store, unless this machine has as late a checkpoint of the same run.

        Raises:
          UserError: where the store cannot be read, or holds something else.
        """
        found = self._found()
        if found and not self._is_ahead(found):
            for path in self.folder.glob("*"):
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._get(found, self.folder)
            self._sent = self._complete()

    def copy(self) -> Path:
        """A folder to read: the one here where it is as late, or else a copy of what is on the store. Raises UserError as ``fetch``."""
        found = self._found()
        if not found or self._is_ahead(found):
            return self.folder
        shutil.rmtree(self._copies, ignore_errors=True)
        self._get(found, self._copies)
        return self._copies

    def send(self) -> None:
        """Makes the store what is complete here. Raises what the store raises."""
        here = self._complete()
        if "experiment.json" not in here:
            raise FileNotFoundError(f"{self.folder} is gone")
        there = self._names()
        # A step loses its seal first and gets it last. Nothing else is ever deleted there.
        gone = {name for name in there - here.keys() if name.startswith(("checkpoints/", "seals/"))}
        gone = sorted(gone, key=lambda name: not name.startswith("seals/"))
        for name in gone:
            self._store.rm_file(f"{self._root}/{name}")
            self._sent.pop(name, None)
        for name in sorted(here, key=lambda name: (name.startswith("seals/"), name)):
            if name not in there or self._sent.get(name) != here[name]:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    self._store.put_file(str(self.folder / name), f"{self._root}/{name}")
                    self._sent[name] = here[name]

    @contextlib.contextmanager
    def sending(self, say: Callable[[str], None], every: float = 10.0) -> Iterator[None]:
        """Sends every so many seconds, and at the end.

        Raises:
          UserError: at the end, where it cannot be sent; it stays here then, and the same command sends it.
        """
        ended = threading.Event()

        def repeat() -> None:
            failing = False
            while not ended.wait(every):
                try:
                    self.send()
                    failing = False
                except Exception as error:
                    # Each store has errors of its own; most pass.
                    if not failing:
                        say(f"{self.url} cannot be written: {type(error).__name__}: {error}; it is tried again, and training goes on")
                    failing = True

        thread = threading.Thread(target=repeat, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._send_last()

    def _send_last(self) -> None:
        try:
            self.send()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.url} cannot be written: {reason}. Everything is in {self.folder}, and the same command sends it"
            ) from error

    def _found(self) -> set[str]:
        try:
            found = _whole(self._names())
        except Exception as error:
            # Each store has errors of its own.
            raise UserError(f"{self.url} cannot be read: {type(error).__name__}: {error}") from error
        if found and "experiment.json" not in found:
            raise UserError(f"{self.url} is not empty and holds no run (no experiment.json): use another --workdir")
        return found

    def _get(self, names: set[str], folder: Path) -> None:
        try:
            for name in names:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                self._store.get_file(f"{self._root}/{name}", str(file))
        except Exception as error:
            raise UserError(f"{self.url} cannot be read: {type(error).__name__}: {error}") from error

    def _is_ahead(self, found: set[str]) -> bool:
        """Whether this machine has what was found, and as late a checkpoint."""
        mine = self.folder / "experiment.json"
        if not mine.exists() or mine.read_bytes() != self._store.cat_file(f"{self._root}/experiment.json"):
            return False
        ended = "result.json" in found and not (self.folder / "result.json").exists()
        return not ended and max(_sealed(self._complete()), default=0) >= max(_sealed(found), default=0)

    def _names(self) -> set[str]:
        """What is on the store."""
        self._store.invalidate_cache()
        return {path.lstrip("/").removeprefix(f"{self._root}/") for path in self._store.find(self._root)}

    def _complete(self) -> Files:
        """What is here, without what is being written."""
        found: Files = {}
        for file in self.folder.rglob("*"):
            name = file.relative_to(self.folder).as_posix()
            if name == LOCK or name.endswith(".part"):
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if file.is_file():
                    status = file.stat()
                    found[name] = status.st_size, status.st_mtime_ns
        return {name: found[name] for name in _whole(set(found))}


def _sealed(names: set[str] | Files) -> set[int]:
    return {int(match[1]) for name in names if (match := re.fullmatch(r"seals/(\d+)\.json", name))}


def _whole(names: set[str]) -> set[str]:
    """Names without those of checkpoints that have no seal."""
    sealed = {str(step) for step in _sealed(names)}
    return {name for name in names if not name.startswith("checkpoints/") or name.split("/")[1] in sealed}
