"""``resnet-jax study`` and ``resnet-jax report``: order, resume, reduced scale, worker processes, invalid arguments."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest
import resnet_jax
from resnet_jax import cli, distributed
from resnet_jax.errors import UserError
from resnet_jax.models import cifar_architecture, components
from resnet_jax.studies import results as results_lib
from resnet_jax.studies import study as study_lib
from resnet_jax.studies.results import collect
from resnet_jax.studies.study import StudyTable
from resnet_jax.training import fine_tune
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule
from resnet_jax.training.run_dir import Workdir

import launched
from conftest import ROOT, Told
from test_cli import fails

TINY = f"{ROOT}/tests/tiny_experiment.py"
TABLE1 = f"{ROOT}/experiments/he2016_shortcuts.py:table1"


class Watching(StudyTable):
    """Records its calls."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.told = Told()

    @contextlib.contextmanager
    def running(self, variant: Experiment, seed: int) -> Iterator[Told]:
        self.events.append((variant.name, seed))
        yield self.told

    def finished(self, variant: Experiment, result: dict[str, Any]) -> None:
        self.events.append(f"{variant.name} {result['seed']}")


@pytest.fixture(scope="module")
def variants() -> list[Experiment]:
    """Two that differ in their names alone, and so share a compiled program."""
    tiny = components.load(f"{TINY}:tiny")()
    return [dataclasses.replace(tiny.shortened(4), name=name) for name in ("first", "second")]


def run(variants: Sequence[Experiment], seeds: Sequence[int], workdir: Path, digits_dir: str, **options: Any) -> list[Any]:
    watching = Watching()
    study_lib.run(variants, seeds, workdir, watcher=watching, data_dir=digits_dir, devices=1, **options)
    return watching.events


def digests(workdir: Path) -> dict[str, str]:
    return {str(path.relative_to(workdir)): json.loads(path.read_text())["state_digest"] for path in workdir.glob("*/*/result.json")}


def test_study_runs_seed_by_seed_and_keeps_diverged_runs(variants: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    """All variants have their first seed before any has its second; finished and diverged runs are not repeated."""
    wild = dataclasses.replace(variants[0], name="wild", schedule=Schedule(learning_rate=1e30, warmup_steps=0))
    events = run([*variants, wild], [0], tmp_path, digits_dir)
    assert events == [("first", 0), "first 0", ("second", 0), "second 0", ("wild", 0), "wild 0"]
    events = run([*variants, wild], [0, 1], tmp_path, digits_dir)
    assert events[:3] == ["first 0", "second 0", "wild 0"]
    assert events[3::2] == [("first", 1), ("second", 1), ("wild", 1)]
    by_name = {variant.name: variant for variant in collect([tmp_path])}
    assert by_name["first"].error.values == by_name["second"].error.values
    assert (by_name["wild"].diverged, by_name["wild"].failed, by_name["wild"].error.values) == (2, True, (100.0, 100.0))


def test_invalid_variants_stop_the_study_before_the_first_run(variants: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    for message, model, data in (
        ("wrong: the images", cifar_architecture(8), "digits"),
        ("wrong: data set 'nowhere' is not prepared", cifar_architecture(8), "nowhere"),
        ("wrong: Option A cannot shrink", cifar_architecture(8, features=(8, 4, 2), input_shape=(8, 8, 1)), "digits"),
    ):
        wrong = Experiment(name="wrong", model=model, data=Data(name=data), steps=4, evaluation=Evaluation(batch_size=72))
        with pytest.raises(UserError, match=message):
            run([*variants, wrong], [0], tmp_path / "w", digits_dir, on_start=lambda: pytest.fail("begun"))
    Workdir(tmp_path / "w" / "second" / "seed-1").claim(dataclasses.replace(variants[1], steps=3), 1)
    with pytest.raises(UserError, match="second: .*holds another run"):
        run(variants, [0, 1], tmp_path / "w", digits_dir)
    assert not (tmp_path / "w" / "first").exists()


STUDIES = """
from dataclasses import replace
from resnet_jax.models import cifar_architecture
from resnet_jax.training.config import Data, Experiment

one = Experiment(name="one", model=cifar_architecture(20), data=Data(name="cifar10"))
good = lambda depth=20: [replace(one, model=cifar_architecture(depth)), replace(one, name="two")]
empty = lambda: []
mixed = lambda: [one, "two"]
doubled = lambda: [one, replace(one, steps=1)]
slashed, hidden, long, wide, file = (
    lambda name=name: [replace(one, name=name)] for name in ("a/b", "..", "n" * 101, "\u5c64" * 40, "report.html")
)
"""


def test_studies_are_checked_when_called(tmp_path: Path) -> None:
    (tmp_path / "studies.py").write_text(STUDIES)
    study = f"{tmp_path}/studies.py"
    assert [sum(variant.model.stages) for variant in study_lib.load_variants(f"{study}:good", depth=56)] == [27, 9]
    cases = {
        **dict.fromkeys(("empty", "mixed"), "returned no sequence of experiments"),
        **dict.fromkeys(("doubled", "slashed", "hidden", "long", "wide", "file"), "must be the name of one directory"),
        "one": "cannot be called with no arguments",
        "goood": "has no 'goood'; did you mean good",
    }
    for name, reason in cases.items():
        with pytest.raises(UserError, match=f"studies.py.*{reason}"):
            study_lib.load_variants(f"{study}:{name}")
    with pytest.raises(UserError, match="studies.py:empty cannot be called with {'depth': 20}"):
        study_lib.load_variants(f"{study}:empty", depth=20)


@pytest.mark.slow
def test_command_runs_a_study_at_reduced_scale_and_states_it(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    """The same command with more seeds resumes and extends the table."""
    scale = ["--data", "digits", "--steps", "4", "--depth", "8", "--only", "original"]
    command = ["study", TABLE1, *scale, "--workdir", str(tmp_path / "t1"), "--data-dir", digits_dir, "--devices", "1"]
    cli.main([*command, "--seeds", "1"])
    before = digests(tmp_path / "t1")
    cli.main([*command, "--seeds", "2"])
    captured = capsys.readouterr()
    assert "original, seed 1: test error" in captured.err
    assert digests(tmp_path / "t1").items() > before.items()
    stated = "At reduced scale: digits in place of cifar10, 4 steps in place of 64,000, 3 blocks in place of 54."
    assert stated in " ".join(captured.out.split())
    assert stated in (tmp_path / "t1" / "report.html").read_text()
    notes = results_lib.notes([tmp_path / "t1"])
    assert notes["command"].endswith("table1 --seeds 2 --data digits --steps 4 --depth 8 --only original --workdir t1")
    assert len(notes["variants"]) == 11
    cli.main(["report", str(tmp_path / "t1"), "--save", str(tmp_path / "saved.json"), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert [result["value"] for result in results_lib.read(tmp_path / "saved.json")] == row["test_error"]["values"]


def test_workers_receive_one_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert study_lib.visible("gpu", 2, None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    # Slurm shows some of the devices of a machine.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a,7")
    assert study_lib.visible("gpu", 3, 2) == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "GPU-5a"}]
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    for number, variables in enumerate(study_lib.visible("tpu", 4, None)):
        assert variables.items() >= (bounds | {"TPU_VISIBLE_CHIPS": str(number)}).items()
    assert [study_lib.visible("cpu", 8, count) for count in (None, 2)] == [[], [{}, {}]]
    assert study_lib.visible("gpu", 1, None) == study_lib.environments(None) == study_lib.environments(1) == []
    with pytest.raises(UserError, match="--workers is 4 for 2 devices"):
        study_lib.visible("gpu", 2, 4)


def test_workers_train_at_once_each_on_its_own_device(variants: list[Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, four runs: each process waits for one on the other device."""
    both, devices = threading.Barrier(2, timeout=60), []

    class Process(contextlib.nullcontext[Any]):
        enter_result, returncode = None, 0

        def __init__(self, run: study_lib.Run, environment: dict[str, str], log: Path, *_: object) -> None:
            devices.append(environment["CUDA_VISIBLE_DEVICES"])
            run.folder.mkdir(parents=True)
            log.touch()
            (run.folder / "result.json").write_text(json.dumps({"seed": run.seed, "value": 1.0}))

        @property
        def stdout(self) -> Iterator[str]:
            met = both.wait()
            yield json.dumps({"call": "step", "arguments": [met, None]})

    monkeypatch.setattr(study_lib, "_start", Process)
    runs = [study_lib.Run(variant, seed, tmp_path / variant.name / f"seed-{seed}") for seed in (0, 1) for variant in variants]
    watching = Watching()
    assert study_lib.train_in_workers(runs, study_lib.visible("gpu", 2, None), watcher=watching, data_dir=None) == {}
    assert sorted(devices) == ["0", "0", "1", "1"]
    assert sorted(watching.told.steps) == [0, 0, 1, 1]


def test_studies_of_several_processes_have_no_workers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runs use the devices of all processes; workers of each process would train the same runs."""
    environments = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    monkeypatch.setattr(distributed, "leave", sys.exit)
    monkeypatch.setattr(study_lib, "environments", lambda _: [{}, {}])
    monkeypatch.setattr(study_lib, "run", lambda *_, **options: environments.append(options["environments"]))
    command = ["study", f"{TINY}:pair", "--workdir", str(tmp_path)]
    cli.main(command)
    assert environments == [[]]
    assert "--workers and several processes exclude each other" in fails(capsys, *command, "--workers", "2")


def test_study_in_python_has_a_row_per_run_and_paired_differences(variants: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    result = resnet_jax.study(variants, [0, 1], str(tmp_path), data_dir=digits_dir, devices=1)
    rows = result.table()
    assert [(row["variant"], row["seed"]) for row in rows] == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]
    assert not any(isinstance(value, dict) for row in rows for value in row.values())
    assert {row["source"]: row["state_digest"] for row in rows} == {
        str((tmp_path / file).parent): digest for file, digest in digests(tmp_path).items()
    }
    (row,) = result.differences()
    assert (row["variant"], row["baseline"], row["seeds"], row["mean"], row["distinguishable"]) == ("second", "first", 2, 0, False)
    weights = fine_tune.weights_of(Path(rows[0]["source"]))
    for source in (rows[0]["source"], weights):
        assert resnet_jax.evaluate(source, data_dir=digits_dir)["error_percent"] == rows[0]["value"]
    with pytest.raises(UserError, match="'first' must be the name of one directory"):
        resnet_jax.study(variants[:1] * 2, [0], tmp_path)


@pytest.mark.slow
def test_stopped_and_resumed_workers_equal_the_sequential_study(digits_dir: str, tmp_path: Path) -> None:
    """Two variants x two seeds in two processes, stopped by Ctrl-C, then killed, then resumed: equal state digests."""
    base = ["study", f"{TINY}:pair", "--seeds", "2", "--data-dir", digits_dir, "--json"]
    parallel = [*base, "--workdir", str(tmp_path / "parallel"), "--workers", "2"]

    def interrupted(number: int) -> tuple[int, str]:
        known = set(tmp_path.glob("parallel/*/*/checkpoints/*"))
        (process,) = launched.begin(parallel)
        run = launched.Run([process])
        run.wait_until(lambda: set(tmp_path.glob("parallel/*/*/checkpoints/*")) - known or process.poll() is not None)
        process.send_signal(number)
        return run.wait()[0]

    def finished(*command: str) -> list[Any]:
        (process,) = launched.begin(command, stdout=subprocess.PIPE)
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return [(row["name"], row["test_error"]) for row in json.loads(out)]

    code, errors = interrupted(signal.SIGINT)
    assert code == 0 or (code == 128 + signal.SIGINT and "the states are saved" in errors)
    interrupted(signal.SIGKILL)
    for path in tmp_path.glob("parallel/*/*/*.lock"):  # Workers of the killed parent stop and release their locks.
        with filelock.FileLock(path, timeout=600):
            pass
    assert finished(*parallel) == finished(*base, "--workdir", str(tmp_path / "sequential"), "--devices", "1")
    assert len(digests(tmp_path / "parallel")) == 4
    assert digests(tmp_path / "parallel") == digests(tmp_path / "sequential")


@pytest.mark.slow
def test_crashed_worker_is_reported_and_others_finish(variants: list[Experiment], digits_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "second" / "seed-0"
    Workdir(folder).claim(variants[1], 0)
    (folder / "metrics.jsonl").mkdir()
    (tmp_path / "blocked" / "seed-0.log").mkdir(parents=True)
    blocked = dataclasses.replace(variants[0], name="blocked")
    watching = Watching()
    # One device: an error of this process leaves it to the other runs.
    failed = study_lib.run([blocked, *variants[::-1]], [0], tmp_path, watcher=watching, data_dir=digits_dir, environments=[{}])
    first, second = failed[tmp_path / "blocked" / "seed-0"], failed[folder]
    assert first.startswith("IsADirectoryError: ")
    for text in ("exit code 1: ", "metrics.jsonl is corrupt", f"see {tmp_path}/second/seed-0.log"):
        assert text in second
    assert "first 0" in watching.events
    assert not (tmp_path / "first" / "seed-0.log").exists()
    assert watching.told.records, "progress arrives"
