"""Progress of runs and studies: a table on a terminal, lines in a log."""

import dataclasses
import io
import time
from types import SimpleNamespace

import pytest
from resnet_jax.studies.study import StudyTable
from resnet_jax.terminal import RunProgress
from resnet_jax.training.config import Experiment
from rich.console import Console

TRAIN = {"split": "train", "step": 6, "loss": 1.25, "error_percent": 40.0, "learning_rate": 0.1, "images_per_second": 1000.0}


@pytest.fixture
def variants(tiny: Experiment) -> list[Experiment]:
    """The second makes twice the steps of the first."""
    return [dataclasses.replace(tiny, name="short"), dataclasses.replace(tiny, name="long", steps=24)]


def begun(steps: int) -> SimpleNamespace:
    return SimpleNamespace(step=0, experiment=SimpleNamespace(steps=steps))


def shown(table: StudyTable, name: str = "") -> str:
    """The table, or the row of a variant."""
    console = Console(file=io.StringIO(), width=150)
    console.print(table.render())
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return next(line for line in text.splitlines() if line.split()[0] == name) if name else text


def test_table_has_seeds_error_and_the_current_run_of_each_variant(variants: list[Experiment]) -> None:
    """With 12 and 24 steps and two seeds, a run of the first is 1/6 of the work, as is half a run of the second."""
    with StudyTable(variants, 2, Console(file=io.StringIO(), force_terminal=True, width=150)) as table:
        table.finished(variants[0], {"seed": 0, "value": 4.0})
        assert "left" not in shown(table), "earlier runs have no part in the remaining time"
        assert all(text in shown(table, "short") for text in ("1/2", "4.00"))
        with table.running(variants[1], 0) as progress:
            assert "seed 0: compiling" in shown(table, "long")
            progress.start(begun(24))
            progress.record(TRAIN)
            progress.step(12, None)
            assert "seed 0: step 12/24, loss 1.2500, training error 40.0 %" in shown(table, "long")
            table._began = time.monotonic() - 60  # 60 s for one sixth of the work: two thirds are left, 240 s
            assert "1 of 4 runs in 0:01:00, about 0:04:00 left" in shown(table)
            with table.running(variants[1], 1):
                assert "seed 0: step 12/24" in shown(table)
                assert "seed 1: compiling" in shown(table)
        table.finished(variants[1], {"seed": 0, "value": 30.0})
        assert "30.00 fail" in shown(table, "long")
        assert "step" not in shown(table, "long")
        table.finished(variants[0], {"seed": 1, "value": 8.0})
        assert all(text in shown(table, "short") for text in ("2/2", "6.00 ± 2.83"))  # sqrt(2 x 4)


def test_log_has_a_line_per_evaluation_and_run(variants: list[Experiment]) -> None:
    log = io.StringIO()
    with StudyTable(variants, 1, Console(file=log, width=200)) as table:
        with table.running(variants[0], 3) as progress:
            progress.start(begun(12))
            progress.record(TRAIN)
            progress.record({"split": "test", "step": 6, "error_percent": 50.0})
            progress.message("continuing after step 4")
        table.finished(variants[0], {"seed": 3, "value": 25.0})
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("short, seed 3: step 6/12, test error 50.00 %, loss 1.2500")
    assert lines[1] == "short, seed 3: continuing after step 4"
    assert lines[2].startswith("short, seed 3: test error 25.00 %; 1 of 2 runs")


def test_run_shows_a_bar_on_a_terminal_and_lines_in_a_log() -> None:
    for terminal in (True, False):
        output = io.StringIO()
        with RunProgress("tiny", Console(file=output, width=200, force_terminal=terminal)) as progress:
            progress.start(begun(12))
            progress.record(TRAIN)
            progress.record({"split": "test", "step": 6, "error_percent": 50.0})
            progress.message("saved")
        assert ("tiny: step 6/12, test error 50.00 %, loss 1.2500" in output.getvalue()) == (not terminal)
        assert "tiny: saved" in output.getvalue()
