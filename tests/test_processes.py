"""How a process finds out which of several it is, without asking anybody."""

import pytest

from resnet_jax import processes
from resnet_jax.errors import UserError
from resnet_jax.processes import Joining, Place

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_of_which_nobody_says_anything_is_alone() -> None:
    assert processes.detected() is None
    assert processes.connect() is None
    assert not processes.several()
    assert processes.is_first()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "node7:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            Place("environment", "node7:8476", 4, 3),
        ),
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, Place("Slurm", None, 2, 1)),
        ({"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "2"}, None),  # the batch script of an allocation, and no step
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}, Place("Cloud TPU", None, 4, 2)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ],
)
def test_the_environment_says_it(variables: dict[str, str], expected: Place | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.detected() == expected


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert processes.detected(Joining(coordinator="127.0.0.1:99", processes=2, process=0)) == Place("flags", "127.0.0.1:99", 2, 0)


@pytest.mark.parametrize(
    ("joining", "said"),
    [
        (Joining(processes=2), "missing: --coordinator HOST:PORT, --process I"),
        (Joining(coordinator="node7:1", processes=2), "missing: --process I"),
        (Joining(coordinator="node7", processes=2, process=0), "'node7'; give HOST:PORT"),
        (Joining(coordinator="node7:1", processes=2, process=2), "process 2 of 2.*give 0 to 1"),
        (Joining(coordinator="node7:1", processes=2, process=-1), "process -1 of 2"),
    ],
)
def test_what_is_said_in_part_is_refused(joining: Joining, said: str) -> None:
    with pytest.raises(UserError, match=said):
        processes.detected(joining)


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first'; give a number"):
        processes.detected()


def test_one_process_leaves_as_python_does() -> None:
    with pytest.raises(SystemExit) as left:
        processes.leave(75)
    assert left.value.code == 75
