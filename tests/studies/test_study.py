"""A study: which runs it makes, in which order, whom it tells, and that one run's end is not the others'."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Told

from resnet_jax import references
from resnet_jax.errors import UserError
from resnet_jax.models import cifar_architecture
from resnet_jax.studies import study
from resnet_jax.studies.cells import collect
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Schedule


class Watching:
    """Remembers what it was told, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.told = Told()

    @contextlib.contextmanager
    def running(self, cell: Experiment, seeds: Sequence[int]) -> Iterator[Told]:
        self.events.append((cell.name, list(seeds)))
        yield self.told

    def finished(self, cell: Experiment, results: Sequence[dict[str, Any]]) -> None:
        self.events += [f"{cell.name} {result['seed']} done" for result in results]


@pytest.fixture
def cells() -> list[Experiment]:
    """Two that share a program, in four steps; the second has a gentler schedule only in name."""
    tiny = references.load(f"{ROOT}/tests/tiny_experiment.py:tiny")()
    return [dataclasses.replace(tiny.shortened(4), name=name) for name in ("first", "second")]


def run(cells: list[Experiment], seeds: Sequence[int], workdir: Path, digits_dir: str, **options: Any) -> list[Any]:
    watching = Watching()
    folders = study.run(cells, seeds, workdir, watcher=watching, data_dir=digits_dir, devices=1, **options)
    assert folders == [workdir / cell.name / f"seed-{seed}" for cell in cells for seed in seeds]
    return watching.events


def test_one_by_one_every_cell_has_its_first_seed_before_any_has_its_second(
    cells: list[Experiment], digits_dir: str, tmp_path: Path
) -> None:
    """And what is finished is told at once and not run again."""
    assert run(cells, [0, 1], tmp_path, digits_dir) == [
        ("first", [0]),
        "first 0 done",
        ("second", [0]),
        "second 0 done",
        ("first", [1]),
        "first 1 done",
        ("second", [1]),
        "second 1 done",
    ]
    again = run(cells, [1, 2], tmp_path, digits_dir, seed_parallel="vmap")
    assert again == ["first 1 done", "second 1 done", ("first", [2]), "first 2 done", ("second", [2]), "second 2 done"]


def test_cells_that_are_equal_but_for_their_names_find_equal_errors(cells: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    run(cells, [0, 1], tmp_path, digits_dir)
    (found,) = collect([tmp_path / "first"])
    (other,) = collect([tmp_path / "second"])
    assert found.error.values == other.error.values


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result_and_the_others_go_on(cells: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    """Its error is 100 %; started again, it is not tried again."""
    wild = dataclasses.replace(cells[0], name="wild", schedule=Schedule(learning_rate=1e30, warmup_steps=0))
    events = run([wild, cells[1]], [0], tmp_path, digits_dir)
    assert events == [("wild", [0]), "wild 0 done", ("second", [0]), "second 0 done"]
    found, other = collect([tmp_path])
    assert (found.name, found.diverged, found.failed, found.error.values) == ("wild", 1, True, (100.0,))
    assert other.diverged == 0
    assert run([wild, cells[1]], [0], tmp_path, digits_dir) == ["wild 0 done", "second 0 done"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            Experiment(name="wrong", model=cifar_architecture(8), data=Data(name="digits"), evaluation=Evaluation(batch_size=72)),
            "wrong: the images",
        ),
        (Experiment(name="wrong", model=cifar_architecture(8), data=Data(name="nowhere")), "wrong: data set 'nowhere' is not prepared"),
        (
            Experiment(
                name="wrong", model=cifar_architecture(8, input_shape=(8, 8, 1), features=(8, 4, 2)), data=Data(name="digits"), steps=4
            ),
            "wrong: option A cannot shrink",
        ),
    ],
)
def test_a_cell_that_cannot_run_stops_the_study_before_the_first_does(
    cells: list[Experiment], wrong: Experiment, said: str, digits_dir: str, tmp_path: Path
) -> None:
    """Wrong images, a set that is not there, a structure that cannot be built (option A asked to shrink)."""
    begun: list[bool] = []
    with pytest.raises(UserError) as caught:
        run([*cells, wrong], [0], tmp_path / "w", digits_dir, begun=lambda: begun.append(True))
    assert said in str(caught.value)
    assert not begun
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("devices", "mode"), [(1, "off"), (2, "devices"), (None, "devices")])
def test_seeds_have_devices_of_their_own_where_there_are_several(devices: int | None, mode: str) -> None:
    """The fastest of the three by `bench seeds` (README)."""
    assert study.default_seed_parallel(devices) == mode
