"""A temporary Slurm on this machine: munge, controller and one node, in a temporary folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
# cred_expire: a requeued job waits this long before it restarts; default 120 s. config_overrides: the node has the CPUs stated below.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def can_start() -> bool:
    """Returns True for root with Slurm and munge installed."""
    return os.geteuid() == 0 and all(shutil.which(name, path=SEARCH_PATH) for name in PROGRAMS)


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Yields the environment for Slurm's commands; stops all jobs and daemons at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    daemons: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"PATH": SEARCH_PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(*command: str) -> None:
        daemons.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def output(*command: str) -> str | None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    try:
        # Daemons of root check the permissions.
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir(mode=0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
            ports = first.getsockname()[1], second.getsockname()[1]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports))
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        # --force: the socket is not in the default folder.
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        wait_for(lambda: output("munge", "-n", "-S", f"{folder}/munge.socket") is not None, 60, "munged answers")
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-N", host)
        wait_for(lambda: "idle" in (output("sinfo", "--noheader", "--format=%T") or ""), 120, "the node is idle")
        yield environment
        output("scancel", "--full", "--user=root")
        wait_for(lambda: not (output("squeue", "-h") or "").strip(), 90, "no jobs")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls a condition four times per second; raises TimeoutError if it stays false."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.25)
