"""Whole input pipelines beside each other."""

import json

import numpy as np
import pytest

from resnet_jax import cli
from resnet_jax.bench import pipelines
from resnet_jax.data.sources import DatasetInfo


def test_what_other_processes_compute_is_counted() -> None:
    """A process that computes for 0.3 s of its own clock."""
    import subprocess
    import sys

    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with_child, alone = pipelines._cpu_seconds({child.pid}), pipelines._cpu_seconds(set())
        assert 0.25 < with_child - alone < 1.0
    finally:
        child.communicate("\n")


def test_pillows_batches_are_whole_and_of_the_size_asked_for(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "_given", {})
    pipelines._begin(photographs, (40, 24))
    found = pipelines._prepare([0, 1, 2])
    assert (found.shape, found.dtype) == ((3, 40, 24, 3), np.uint8)
    assert len({image.tobytes() for image in found}) == 3


@pytest.mark.slow
def test_pipelines_are_compared_by_the_command_line(photographs: DatasetInfo, capsys: pytest.CaptureFixture) -> None:
    cli.main(["bench", "input", "--images", "32", "--batch-size", "16", "--rounds", "2", "--size", "64", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in found["rows"]}
    assert {"read the record", "Pillow in a process pool", "this input, area", "this input, bilinear"} <= rows.keys()
    assert rows["Pillow in a process pool"]["over_pool"] == 1
    assert all(row["images_per_cpu_second"] > 0 for row in rows.values())


def test_an_experiment_that_streams_nothing_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "input", "experiments/he2015_cifar10.py:resnet20"])
    assert "has no data.crop" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "input", "--size", "0"])
    assert "--size is 0; give at least 1" in capsys.readouterr().err
