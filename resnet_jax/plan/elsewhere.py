"""A process of its own that compiles: it is told before jax starts what not to look for; its compilers may print and end as they like."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.plan import offline

# What the compiling process writes before what it says of its way, and before the rows.
_SAYS, _FOUND, _REFUSES = "says ", "found ", "refuses "


def ask(module: str, arguments: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Runs ``python -m module`` with the arguments, which ends in ``answer``; returns its rows.

    Raises:
      UserError: that the other process raised.
      RuntimeError: where it ended without rows, with what it printed last.
    """
    rows: list[dict[str, Any]] | None = None
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as noise:
        with subprocess.Popen(command, env=offline.environment(os.environ), stdout=subprocess.PIPE, stderr=noise, text=True) as child:
            try:
                for line in child.stdout or ():
                    if line.startswith(_SAYS):
                        say(json.loads(line.removeprefix(_SAYS)))
                    elif line.startswith(_REFUSES):
                        raise UserError(json.loads(line.removeprefix(_REFUSES)))
                    elif line.startswith(_FOUND):
                        rows = json.loads(line.removeprefix(_FOUND))
            except BaseException:
                child.terminate()
                raise
        if rows is None:
            noise.seek(0)
            raise RuntimeError(f"compiling ended with exit code {child.returncode}:\n{noise.read()[-4000:]}")
        return rows


def answer(make: Callable[[Callable[[str], None]], list[dict[str, Any]]]) -> None:
    """What the other process does: makes the rows, saying on its way what it likes."""

    def tell(what: str, value: Any) -> None:
        print(what + json.dumps(value), flush=True)

    try:
        tell(_FOUND, make(lambda message: tell(_SAYS, message)))
    except UserError as error:
        tell(_REFUSES, str(error))


def described() -> dict[str, Any]:
    """Commit, versions, with those of the compilers, and devices of this machine."""
    from resnet_jax.training import environment

    here = environment.describe()
    for name in ("libtpu", "jax-cuda12-plugin"):
        try:
            here["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return here
