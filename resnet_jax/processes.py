"""The processes that one command runs in: how they find each other, and how one of them leaves."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NoReturn

from resnet_jax import attached
from resnet_jax.errors import UserError

# Exit codes, beside 0 (done), 1 (a run that failed), 2 (bad input) and 128 + signal (stopped, saved).
PEER_LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command, in all processes, continues.


class NeverMet(Exception):
    """The other processes did not come."""


@dataclass(frozen=True, kw_only=True)
class Joining:
    """Which of several processes this is. Not given: as the environment says (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, Slurm, Cloud TPU), or one alone."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which this is, from 0."""
    heartbeat_seconds: int = 60
    """A process that is not heard of for so long is taken for lost, and ends the others."""
    meeting_seconds: int = 300
    """How long processes wait for each other at the beginning."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among others."""

    found: Literal["flags", "environment", "Slurm", "Cloud TPU"]
    """What said so."""
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    """None: jax asks Slurm or the TPU's metadata."""

    def __str__(self) -> str:
        if self.processes is None:
            return f"{self.found}: its metadata say which process this is, and of how many"
        at = f", coordinator {self.coordinator}" if self.coordinator else ""
        return f"{self.found}: process {self.process} of {self.processes}{at}"


def detected(joining: Joining = Joining()) -> Place | None:
    """Finds out whether this process is one of several, without asking anybody outside of the machine; None: it is alone.

    Raises:
      UserError: where flags or variables are given in part, or are no numbers.
    """
    given = (joining.coordinator, joining.processes, joining.process)
    if any(value is not None for value in given):
        return _complete("flags", *given, names=("--coordinator HOST:PORT", "--processes N", "--process I"))
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    coordinator, *counts = (os.environ.get(name) for name in variables)
    if any(value is not None for value in (coordinator, *counts)):
        return _complete(
            "environment", coordinator, *(_number(name, n) for name, n in zip(variables[1:], counts, strict=True)), names=variables
        )
    # Inside a step alone: the batch script of an allocation is no task of it.
    if "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return Place("Slurm", processes=int(os.environ["SLURM_NTASKS"]), process=int(os.environ["SLURM_PROCID"]))
    hosts = (os.environ.get("TPU_WORKER_HOSTNAMES") or "").split(",")
    if len(hosts) > 1:
        return Place("Cloud TPU", processes=len(hosts), process=int(os.environ.get("TPU_WORKER_ID", "0")))
    if _on_a_tpu():
        return Place("Cloud TPU")
    return None


def connect(joining: Joining = Joining()) -> Place | None:
    """Joins the others by JAX's distributed runtime, before jax looks for devices; returns where this process stands, None if alone.

    Raises:
      UserError: as ``detected``.
      NeverMet: where the others do not come in time; they may the next time.
    """
    place = detected(joining)
    if place is None:
        return None
    import jax

    _keep_stdout_for_answers()
    # Of an address of this machine the port is opened there alone.
    local = place.coordinator if (place.coordinator or "").rpartition(":")[0] in ("localhost", "127.0.0.1") else None
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes if place.coordinator else None,
            place.process if place.coordinator else None,
            initialization_timeout=joining.meeting_seconds,
            heartbeat_timeout_seconds=joining.heartbeat_seconds,
            coordinator_bind_address=local,
        )
    except (RuntimeError, ValueError) as error:
        if place.processes is None and isinstance(error, ValueError):
            return None  # A device file like a TPU's, and no metadata server that knows of one.
        said = (str(error).splitlines() or [""])[0]
        raise NeverMet(f"{place}: the processes did not meet within {joining.meeting_seconds} s: {said}") from error
    return Place(place.found, place.coordinator, jax.process_count(), jax.process_index())


def several() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process speaks for all: it alone prints results."""
    return not several() or sys.modules["jax"].process_index() == 0


def name() -> str:
    """This process among the others, for messages."""
    jax = sys.modules["jax"]
    return f"process {jax.process_index()} of {jax.process_count()}"


def lost(error: BaseException) -> bool:
    """Whether an error in one of several processes says that another is gone: one of the runtime's, and not of memory or of a program."""
    import jax

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, jax.errors.JaxRuntimeError):
            return not str(seen).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
        seen = seen.__cause__ or seen.__context__
    return False


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code; one of several at once, since jax would wait for the others at the exit, gone or not."""
    if not several():
        raise SystemExit(code)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _keep_stdout_for_answers() -> None:
    """From here on what libraries in C++ write to stdout goes to stderr: gloo tells of its connections in the middle of an answer."""
    if sys.stdout is not sys.__stdout__:
        return  # It goes somewhere else already.
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.__stdout__ = answers


def _complete(
    found: Literal["flags", "environment"], coordinator: str | None, processes: int | None, process: int | None, *, names: tuple[str, ...]
) -> Place:
    missing = [name for name, value in zip(names, (coordinator, processes, process), strict=True) if value is None]
    if coordinator is None or processes is None or process is None:
        raise UserError(f"one of several processes is told {', '.join(names[:2])} and {names[2]}; missing: {', '.join(missing)}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"the coordinator is {coordinator!r}; give HOST:PORT, as 10.0.0.1:8476")
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: they are counted from 0, give 0 to {processes - 1}")
    return Place(found, coordinator, processes, process)


def _number(name: str, value: str | None) -> int | None:
    if value is None or value.isdigit():
        return None if value is None else int(value)
    raise UserError(f"{name} is {value!r}; give a number")


def _on_a_tpu() -> bool:
    if "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu") or "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    return attached.accelerator() == "a TPU" and find_spec("libtpu") is not None
