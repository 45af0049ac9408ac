"""Multi-host helpers: join and leave the processes of a run; process 0 decides for all."""

import glob
import json
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import NeverMet, Positive, UserError, check

T = TypeVar("T")
# Size of a broadcast message, equal in all processes.
_BYTES = 16_384
_VARIABLES = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_TPU_VM = "Cloud TPU: the metadata server knows the processes"
# Variables that jax.distributed.initialize detects, with the number and the index of processes.
_LAUNCHERS = (
    ("Slurm", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)


@dataclass(frozen=True, kw_only=True)
class Joining:
    """Several processes of one run. Default: as Slurm, Open MPI or Cloud TPU describe them."""

    coordinator: str | None = None
    """HOST:PORT of process 0. Default: JAX_COORDINATOR_ADDRESS."""
    processes: int | None = None
    """Number of processes. Default: JAX_NUM_PROCESSES."""
    process: int | None = None
    """Index of this one, from 0. Default: JAX_PROCESS_ID."""
    heartbeat_seconds: Positive = 60
    """Silence after which a process counts as lost; the others then end."""
    meeting_seconds: Positive = 300
    """Time that processes wait for each other to start."""

    def __post_init__(self) -> None:
        check("", Joining, self)

    def place(self) -> tuple[str, int, int] | None:
        """Returns coordinator, number of processes and index by flags or variables, if any."""
        flags = self.coordinator, self.processes, self.process
        coordinator, processes, process = values = [
            os.environ.get(name, "") if flag is None else str(flag)
            for name, flag in zip(_VARIABLES, flags, strict=True)
        ]
        if not any(values):
            return None
        numbers = processes.isdigit() and process.isdigit() and int(process) < int(processes)
        if not (numbers and re.fullmatch(r".+:\d+", coordinator)):
            raise UserError(
                f"process {process!r} of {processes!r} with coordinator {coordinator!r} is no "
                "place among several processes. Give --coordinator HOST:PORT, --processes N and "
                f"--process 0 to N-1, or {', '.join(_VARIABLES)}"
            )
        return coordinator, int(processes), int(process)


def detected(joining: Joining = Joining()) -> str | None:
    """Describes the place of this process among several, if any."""
    if place := joining.place():
        return "process {2} of {1}, coordinator {0}".format(*place)
    variables = os.environ
    for launcher, marker, count, index in _LAUNCHERS:
        if marker in variables and int(variables.get(count, "1")) > 1:
            return f"{launcher}: process {variables.get(index)} of {variables[count]}"
    hosts = variables.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts:
        return f"Cloud TPU: worker {variables.get('TPU_WORKER_ID')} of {hosts}"
    excluded = "tpu" not in variables.get("JAX_PLATFORMS", "tpu")
    if excluded or "TPU_SKIP_MDS_QUERY" in variables or find_spec("libtpu") is None:
        return None
    return _TPU_VM if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*") else None


def connect(joining: Joining = Joining()) -> None:
    """Joins the other processes, if any, before JAX looks for devices."""
    if (place := detected(joining)) is None:
        return
    if sys.stdout is sys.__stdout__:  # C++ libraries write to stderr: gloo logs its connections.
        sys.stdout.flush()
        results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, buffering=1)
        os.dup2(2, 1)
        sys.stdout = sys.__stdout__ = results
    coordinator, count, index = joining.place() or (None, None, None)
    is_local = (coordinator or "").startswith(("localhost:", "127.0.0.1:"))
    problem = f"{place}: the processes did not meet within {joining.meeting_seconds} s"

    def give_up() -> None:
        print(f"resnet-jax: {problem}; run all of them again", file=sys.stderr, flush=True)
        os._exit(NeverMet.exit_code)

    # JAX's own timeout aborts the process with a stack trace of C++.
    timer = threading.Timer(joining.meeting_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=joining.meeting_seconds + 60,
            heartbeat_timeout_seconds=joining.heartbeat_seconds,
            # The port of a coordinator on this machine is open to this machine alone.
            coordinator_bind_address=coordinator if is_local else None,
        )
    except (RuntimeError, ValueError) as error:
        if place == _TPU_VM and isinstance(error, ValueError):
            return  # A device file like a TPU's, without a metadata server.
        reason = str(error).partition("\n")[0]
        raise NeverMet(f"{problem}: {reason}") from error
    finally:
        timer.cancel()


def several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """True for process 0, which prints and writes."""
    return not several() or jax.process_index() == 0


def lost(error: BaseException) -> bool:
    """True if an error means that another process is gone."""
    if re.search("Gloo|NCCL", str(error)):  # A ValueError, where Orbax waits for the arrays.
        return True
    if isinstance(error, jax.errors.JaxRuntimeError):
        own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
        return not str(error).startswith(own)
    cause = error.__cause__ or error.__context__
    return cause is not None and lost(cause)


def leave(code: int) -> NoReturn:
    """Exits; one of several at once, because JAX would wait for the others."""
    if not several():
        raise SystemExit(code)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(reason: str) -> None:
    """Waits for all processes, which pass the same ``reason``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def anyone(flag: bool) -> bool:
    """True if ``flag`` is set in any process. Collective."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def by_first(act: Callable[[], T]) -> T:
    """Returns the JSON value of ``act`` on process 0 in every process. Collective.

    If ``act`` raises, every process raises, all but the first a UserError.
    """
    if jax.process_count() == 1:
        return act()
    value = message = failure = None
    if is_first():
        try:
            value = act()
        except Exception as error:  # Broadcast, because the other processes would wait forever.
            failure, message = error, str(error)
            if not isinstance(error, UserError):
                message = f"the first process failed: {type(error).__name__}: {error}"
            message = message[: _BYTES // 30]  # JSON takes up to 12 bytes for a character.
    text = json.dumps([value, message]).encode().ljust(_BYTES)
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    value, message = json.loads(np.asarray(sent).tobytes())
    if message is not None:
        raise failure or UserError(message)
    return value
