"""Real processes that share a run, on four devices: checkpoints and failed saves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launched

SCRIPT = Path(__file__).parents[1] / "save_in_processes.py"
PARTS = (1, 2, 4)

Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Output of each process, by the number of processes of its group. All run at once: starting one takes longest."""
    root = tmp_path_factory.mktemp("processes")
    running: list[tuple[int, subprocess.Popen[str]]] = []
    for processes in PARTS:
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}"}
        acts = "layouts+corrupt+full" if processes == 2 else "layouts"
        address = launched.free_address()
        for process in range(processes):
            command = [sys.executable, str(SCRIPT), str(process), str(processes), address, str(root), acts]
            running.append((processes, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)))
    outputs: Found = {processes: [] for processes in PARTS}
    try:
        for processes, one in running:
            outputs[processes].append(json.loads(one.communicate(timeout=600)[0].splitlines()[-1]))
    finally:
        for _, one in running:
            one.kill()
    return outputs


@pytest.mark.slow
def test_checkpoint_is_restored_in_any_number_of_processes_and_layout(found: Found) -> None:
    """Bit for bit: 1, 2 and 4 processes, whole on every device or cut into 2 and 4."""
    cases = {f"{processes}-{parts}-{wanted}" for processes in PARTS for parts in PARTS for wanted in PARTS}
    digests = set()
    for group in found.values():
        for process in group:
            assert process["layouts"].keys() == cases
            digests |= {tuple(restored) for restored in process["layouts"].values()}
    ((step, _),) = digests
    assert step == 2


@pytest.mark.slow
def test_corrupt_step_is_skipped_by_all_processes(found: Found) -> None:
    """Corrupt data and a corrupt manifest. A second save of the step is restored by all."""
    first, second = (process["corrupt"] for process in found[2])
    assert first == second
    whole = found[1][0]["layouts"]["1-1-1"][1]
    assert first == [[2, whole, [1, 2], 3, [1, 2, 3]]] * 2
    for process in found[2]:
        assert [message.split(": ")[0] for message in process["said"][:2]] == ["checkpoint of step 3 is corrupt"] * 2


@pytest.mark.slow
def test_failed_save_is_an_error_in_every_process(found: Found) -> None:
    """The next session saves the step, and no partial checkpoint remains."""
    for process in found[2]:
        message, steps, names = process["full"]
        assert message.startswith("the checkpoint of step 2 could not be saved: File too large; the newest is that of step 1. ")
        assert (steps, names) == ([2], ["2"])
