"""Multi-host helpers: joining the processes of one run, and leaving so that none waits for another."""

import glob
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import UserError

PEER_LOST = (
    75  # Exit code EX_TEMPFAIL of sysexits.h: the same command, in all processes, continues.
)

_TPU_VM = "Cloud TPU: the metadata server knows the processes"
_NAMES = (
    "--coordinator or JAX_COORDINATOR_ADDRESS",
    "--processes or JAX_NUM_PROCESSES",
    "--process or JAX_PROCESS_ID",
)


class NeverMet(Exception):
    """The other processes did not connect in time."""


@dataclass(frozen=True, kw_only=True)
class Joining:
    """Place of this process among several. Defaults: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID; else Slurm, Open MPI or
    Cloud TPU as ``jax.distributed.initialize`` detects them."""

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this one, from 0."""
    heartbeat_seconds: int = 60
    """After this silence a process counts as lost, and ends the others."""
    meeting_seconds: int = 300
    """Time that processes wait for each other to start."""


def detected(joining: Joining = Joining()) -> str | None:
    """Describes the place of this process among several, by flags, variables and device files alone; None: single process."""
    if place := _given(joining):
        return "process {2} of {1}, coordinator {0}".format(*place)
    variables = os.environ
    for launcher, marker, count, index in (
        ("Slurm", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"),
        ("Open MPI", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if marker in variables and int(variables.get(count, "1")) > 1:
            return f"{launcher}: process {variables.get(index)} of {variables[count]}"
    if "," in variables.get("TPU_WORKER_HOSTNAMES", ""):
        return f"Cloud TPU: worker {variables.get('TPU_WORKER_ID')} of {variables['TPU_WORKER_HOSTNAMES']}"
    return _TPU_VM if _is_tpu_vm() else None


def connect(joining: Joining = Joining()) -> None:
    """Joins the other processes, before jax looks for devices; returns at once if alone. Raises NeverMet after ``meeting_seconds``."""
    place = detected(joining)
    if place is None:
        return
    import jax

    _keep_stdout_for_answers()
    coordinator, count, index = _given(joining) or (None, None, None)
    # A coordinator on this machine opens its port to this machine alone.
    local = (
        coordinator
        if coordinator and coordinator.startswith(("localhost:", "127.0.0.1:"))
        else None
    )
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=joining.meeting_seconds,
            heartbeat_timeout_seconds=joining.heartbeat_seconds,
            coordinator_bind_address=local,
        )
    except (RuntimeError, ValueError) as error:
        if place == _TPU_VM and isinstance(error, ValueError):
            return  # A device file like a TPU's, without a metadata server.
        reason = (str(error).splitlines() or [""])[0]
        raise NeverMet(
            f"{place}: the processes did not meet within {joining.meeting_seconds} s: {reason}"
        ) from error


def several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process prints results for all."""
    return not several() or sys.modules["jax"].process_index() == 0


def name() -> str:
    jax = sys.modules["jax"]
    return f"process {jax.process_index()} of {jax.process_count()}"


def lost(error: BaseException) -> bool:
    """Returns whether an error means that another process is gone."""
    import jax

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, jax.errors.JaxRuntimeError):
            return not str(cause).startswith(
                ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
            )
        cause = cause.__cause__ or cause.__context__
    return False


def leave(code: int) -> NoReturn:
    """Exits; at once if one of several, because jax waits for the others at a normal exit."""
    if not several():
        raise SystemExit(code)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _keep_stdout_for_answers() -> None:
    """Redirects stdout of C++ libraries to stderr: gloo logs its connections."""
    if sys.stdout is not sys.__stdout__:
        return  # Redirected already.
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.__stdout__ = answers


def _given(joining: Joining) -> tuple[str, int, int] | None:
    """Returns coordinator, number of processes and index by flags or variables; None without any."""
    flags = dict(
        zip(_NAMES, (joining.coordinator, joining.processes, joining.process), strict=True)
    )
    values = [
        os.environ.get(name.rpartition(" ")[2]) if flag is None else str(flag)
        for name, flag in flags.items()
    ]
    missing = [name for name, value in zip(_NAMES, values, strict=True) if value is None]
    if len(missing) == len(_NAMES):
        return None
    if missing:
        raise UserError(
            f"one of several processes needs a coordinator, a number and an index; give {', '.join(missing)}"
        )
    coordinator, processes, process = map(str, values)
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"the coordinator is {coordinator!r}; give HOST:PORT, as 10.0.0.1:8476")
    if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
        raise UserError(
            f"process {process} of {processes}: give numbers, the first process being 0"
        )
    return coordinator, int(processes), int(process)


def _is_tpu_vm() -> bool:
    if (
        "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu")
        or "TPU_SKIP_MDS_QUERY" in os.environ
        or find_spec("libtpu") is None
    ):
        return False
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


T = TypeVar("T", bound=Any)
# Size of a broadcast message, which has to be equal in all processes.
_BYTES = 16_384


def first() -> bool:
    """Returns whether this is process 0, which writes the files of a run."""
    return jax.process_index() == 0


def wait(reason: str) -> None:
    """Waits for all processes, which pass the same ``reason``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def anyone(flag: bool) -> bool:
    """Returns whether ``flag`` is set in any process. Collective."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def by_first(act: Callable[[], T]) -> T:
    """Runs ``act`` on process 0 and returns its result, a JSON value, in every process. Collective.

    Raises:
      UserError: in every process, where ``act`` raises.
    """
    if jax.process_count() == 1:
        return act()
    value, message, failure = None, None, None
    if first():
        try:
            value = act()
        except Exception as error:
            # Broadcast, because the other processes would wait forever.
            failure = error
            message = (
                str(error)
                if isinstance(error, UserError)
                else f"the first process failed: {type(error).__name__}: {error}"
            )
            message = message[: _BYTES // 30]  # JSON takes up to 12 bytes for a character.
    text = json.dumps([value, message]).encode()
    buffer = np.zeros(_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    value, message = json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes().rstrip(b"\0")
    )
    if message is not None:
        raise failure or UserError(message)
    return value
