"""Detection of several processes from flags and variables."""

import pytest
from resnet_jax import distributed
from resnet_jax.distributed import Joining
from resnet_jax.errors import UserError

JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
OTHERS = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*JAX, *OTHERS, "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)


def test_single_process_is_alone_and_decides_itself() -> None:
    """At no cost: nothing is sent."""
    assert distributed.detected() is None
    distributed.connect()
    assert distributed.is_first()
    assert not distributed.several()
    distributed.wait("nobody")
    assert [distributed.anyone(flag) for flag in (True, False)] == [True, False]
    text = "±" * 100_000
    assert distributed.by_first(lambda: text) is text
    with pytest.raises(SystemExit) as left:
        distributed.leave(75)
    assert left.value.code == 75


def test_variables_of_launchers_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the batch script of an allocation, which has no step."""
    slurm, mpi, tpu = OTHERS[:3], OTHERS[3:], ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")
    for names, values, expected in (
        (JAX, ("node7:8476", "4", "3"), "process 3 of 4, coordinator node7:8476"),
        (slurm, ("node[1-2]", "2", "1"), "Slurm: process 1 of 2"),
        (slurm, ("node1", "1", "0"), None),
        (slurm[1:2], ("2",), None),
        (mpi, ("x", "2", "1"), "Open MPI: process 1 of 2"),
        (mpi, ("x", "1", "0"), None),
        (tpu, ("a,b,c,d", "2"), "Cloud TPU: worker 2 of a,b,c,d"),
        (tpu, ("localhost", "0"), None),
    ):
        with monkeypatch.context() as patch:
            for name, value in zip(names, values, strict=True):
                patch.setenv(name, value)
            assert distributed.detected() == expected


def test_flags_override_variables_and_incomplete_places_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for joining, message in (
        (Joining(processes=2), "process '' of '2' with coordinator '' is no place among several processes"),
        (Joining(coordinator="node7", processes=2, process=0), "coordinator 'node7'.*Give --coordinator HOST:PORT"),
        (Joining(coordinator="node7:1", processes=2, process=2), "process '2' of '2'"),
    ):
        with pytest.raises(UserError, match=message):
            distributed.detected(joining)
    with pytest.raises(UserError, match="process must be at least 0, got -1"):
        Joining(coordinator="node7:1", processes=2, process=-1)
    for name, value in zip(JAX, ("node7:8476", "4", "first"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 'first' of '4'"):
        distributed.detected()
    assert distributed.detected(Joining(process=1)) == "process 1 of 4, coordinator node7:8476"
    assert distributed.detected(Joining(coordinator="[::1]:9", processes=2, process=0)) == "process 0 of 2, coordinator [::1]:9"
