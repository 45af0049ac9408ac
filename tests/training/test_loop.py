"""The loop: what it records, how it ends, and that a run stopped in any way goes on to the same bits. Real processes are killed."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT, Told
from numpy_network import leaves

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import StochasticDepth
from resnet_jax.models.branches import Basic
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.shortcuts import DropoutShortcut
from resnet_jax.studies import run as run_lib
from resnet_jax.training import loop, program
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment, Optimizer, Schedule
from resnet_jax.training.loop import NonFiniteLoss
from resnet_jax.training.workdir import Workdir

STEPS = 400


def command(workdir: Path, digits_dir: str, *more: str) -> list[str]:
    fields = ["--steps", str(STEPS), "--checkpointing.every", "20", "--evaluation.every", "50"]
    reference = f"{ROOT}/tests/tiny_experiment.py:tiny"
    return [sys.executable, "-m", "resnet_jax.cli", "train", reference, "--workdir", str(workdir), "--data-dir", digits_dir, *fields, *more]


def start(workdir: Path, digits_dir: str, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"XLA_FLAGS": ""}  # one device
    return subprocess.Popen(
        command(workdir, digits_dir, *more), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_checkpoint(process: subprocess.Popen[str], workdir: Path, step: int) -> None:
    """Returns as soon as a checkpoint of this step or a later one is committed."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.name.isdigit() and int(path.name) >= step for path in (workdir / "checkpoints").glob("*")):
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not saved: {process.poll()}, {process.communicate() if process.poll() is not None else ''}")


# All that is random in training, and all that is averaged.
RANDOM = ["--model.branch", "Basic(dropout=0.2)", "--model.stochastic-depth.survival", "0.7", "--data.flip"]
AVERAGED = ["--optimizer.ema", "0.9", "--evaluation.statistics-batches", "2"]
FIELDS = {"plain": [], "random and averaged": [*RANDOM, *AVERAGED]}


@pytest.fixture(scope="module")
def undisturbed(digits_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    """The result of an undisturbed run with some of ``FIELDS``, made once."""

    @functools.cache
    def result(fields: str) -> dict:
        workdir = tmp_path_factory.mktemp("straight") / "run"
        code, _, err = finish(start(workdir, digits_dir, *FIELDS[fields]))
        assert code == 0, err
        return json.loads((workdir / "result.json").read_text()) | {"records": Workdir(workdir).records()}

    return result


@pytest.fixture(scope="module")
def straight(undisturbed: Callable[[str], dict]) -> dict:
    """That of the plain run."""
    return undisturbed("plain")


def without_clocks(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "fields"),
    [(20, "plain"), (160, "plain"), (120, "random and averaged")],
)
def test_a_killed_run_started_again_ends_in_the_same_bits(
    at: int, fields: str, undisturbed: Callable[[str], dict], digits_dir: str, tmp_path: Path
) -> None:
    """Dropout, stochastic depth, averages and settled statistics too."""
    workdir, straight = tmp_path / "run", undisturbed(fields)
    process = start(workdir, digits_dir, *FIELDS[fields])
    wait_for_checkpoint(process, workdir, at)
    process.kill()
    process.communicate()
    assert not (workdir / "result.json").exists()
    code, _, err = finish(start(workdir, digits_dir, *FIELDS[fields]))
    assert code == 0, err
    assert "continuing after step" in err
    result = Workdir(workdir).result()
    assert result is not None
    assert result["state_digest"] == straight["state_digest"]
    assert result["value"] == straight["value"]
    assert without_clocks(Workdir(workdir).records()) == without_clocks(straight["records"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_where_it_is_and_goes_on(number: signal.Signals, straight: dict, digits_dir: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, digits_dir)
    wait_for_checkpoint(process, workdir, 100)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert f"stopped by {number.name} after step" in err
    assert "Traceback" not in err
    stopped_at = int(err.split("after step ")[1].split(";")[0])
    assert stopped_at in {int(path.name) for path in (workdir / "checkpoints").iterdir()}, "saved at the very step, not the one due"
    code, _, err = finish(start(workdir, digits_dir))
    assert code == 0, err
    assert f"continuing after step {stopped_at}" in err
    assert json.loads((workdir / "result.json").read_text())["state_digest"] == straight["state_digest"]


@pytest.mark.slow
def test_steps_per_dispatch_and_how_often_it_saves_do_not_change_the_result_beyond_rounding(
    straight: dict, digits_dir: str, tmp_path: Path
) -> None:
    """A loop around the step is another program: XLA may round differently, so the score is compared and not the bits."""
    code, _, err = finish(start(tmp_path / "run", digits_dir, "--execution.steps-per-dispatch", "25", "--checkpointing.every", "90"))
    assert code == 0, err
    result = Workdir(tmp_path / "run").result()
    assert result is not None
    # The same batches in the same order: after 5 steps nothing but rounding differs.
    first, theirs = (
        next(r for r in records if r["split"] == "train") for records in (Workdir(tmp_path / "run").records(), straight["records"])
    )
    assert first["step"] == theirs["step"]
    np.testing.assert_allclose(first["loss"], theirs["loss"], rtol=1e-4)
    assert abs(result["value"] - straight["value"]) < 3


def test_records_and_result_of_a_run(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    result = run_lib.run(tiny, 3, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    records = Workdir(tmp_path / "run").records()
    assert records == told.records
    assert [r["step"] for r in records if r["split"] == "test"] == [6, 12]
    train = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 13))
    # Two warm-up steps at 0.01, then 0.05, a tenth from step 6 on and a hundredth from step 9 on (counted from 0).
    np.testing.assert_allclose([r["learning_rate"] for r in train], [0.01] * 2 + [0.05] * 4 + [0.005] * 3 + [0.0005] * 3, rtol=1e-6)
    assert result == Workdir(tmp_path / "run").result()
    assert (result["examples"], result["seed"], result["steps"], result["split"]) == (360, 3, 12, "test")
    assert result["value"] == records[-1]["error_percent"]
    assert result["protocol"]["training_images"] == 1437
    assert len(result["state_digest"]) == 64
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    again = run_lib.run(tiny, 3, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert again == result
    assert "finished" in told.messages[-1]


def test_rates_are_right_where_calls_return_when_their_steps_are_done(
    tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As loops of XLA do on a GPU: metrics of one call are fetched after the next, and the last before a save or a score at once. A step
    takes a second of this clock; of the first call the seconds do not count, since it compiles.
    """
    seconds, compiled = [0], program.compiled

    def blocking(*args: Any, **options: Any) -> program.Program:
        found = compiled(*args, **options)

        def train(states: Any, data: Any, steps: int) -> Any:
            seconds[0] += steps
            return found.train(states, data, steps)

        return dataclasses.replace(found, train=train)

    monkeypatch.setattr(program, "compiled", blocking)
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: float(seconds[0])))
    run_lib.run(tiny, 3, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    rates = [record["images_per_second"] / tiny.batch_size for record in told.records if record["split"] == "train"]
    # Steps 4, 6, 8 and 12 are saved or scored; the count begins anew behind the first call and the score of step 6.
    np.testing.assert_allclose(rates, [1 / 1, 2 / 2, 3 / 3, 4 / 3, 5 / 5, 6 / 5, 1 / 2, 2 / 2, 3 / 4, 4 / 5, 5 / 6, 6 / 6])


def test_validation_images_are_held_out_and_scored(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    data = dataclasses.replace(tiny.data, validation_examples=437)
    evaluation = dataclasses.replace(tiny.evaluation, training_images=True)
    experiment = dataclasses.replace(tiny, data=data, evaluation=evaluation)
    result = run_lib.run(experiment, 0, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert result["protocol"]["training_images"] == 1000
    scored = {r["split"]: r["examples"] for r in told.records if "examples" in r}
    assert scored == {"test": 360, "validation": 437, "train_scored": 1000}
    assert result["training_error_of"] == "all training images, last step"


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    schedule = Schedule(learning_rate=1e30, decay_steps=(), warmup_steps=6, warmup_learning_rate=0.01)
    experiment = dataclasses.replace(tiny, schedule=schedule)
    with pytest.raises(NonFiniteLoss, match=r"loss of step (8|9) is not finite: the last good checkpoint is that of step 4") as caught:
        run_lib.run(experiment, 0, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert caught.value.step in (8, 9)
    assert not (tmp_path / "run" / "result.json").exists()
    diverged = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert (diverged["value"], diverged["diverged_at_step"], diverged["state_digest"]) == (100.0, caught.value.step, None)
    with pytest.raises(NonFiniteLoss, match=f"step {caught.value.step} is not finite: the last good checkpoint is that of step 4"):
        run_lib.run(experiment, 0, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert all(np.isfinite(record["loss"]) for record in Workdir(tmp_path / "run").records())


def test_bad_input_is_refused_before_anything_is_written(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    for experiment in (
        dataclasses.replace(tiny, batch_size=12),  # not a multiple of 8 devices
        dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, name="nothing")),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, num_classes=7)),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, features=(8, 4, 4))),  # option A cannot shrink
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, stages=(1, 1))),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, output_stride=16)),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, stochastic_depth=StochasticDepth(survival=0.0))),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, branch=configured(Basic, dropout=1.5))),
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, norm=configured(GroupNorm, num_groups=3))),
        dataclasses.replace(tiny, optimizer=Optimizer(frozen=("stages/0", "stm"))),
    ):
        with pytest.raises(UserError):
            run_lib.run(experiment, 0, tmp_path / "run", progress=told, data_dir=digits_dir, devices=8)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    losses = {}
    for devices in (1, 8):
        run_lib.run(tiny, 0, tmp_path / f"run{devices}", progress=told, data_dir=digits_dir, devices=devices)
        losses[devices] = [r["loss"] for r in Workdir(tmp_path / f"run{devices}").records() if r["split"] == "train"]
    np.testing.assert_allclose(losses[8], losses[1], rtol=2e-4)


RANDOM_PARTS = {
    "stochastic depth": {"stochastic_depth": StochasticDepth(survival=0.5)},
    "drop path": {"stochastic_depth": StochasticDepth(survival=0.5, rule="uniform", drops="image", scaled="training")},
    "dropout": {"branch": configured(Basic, dropout=0.3)},
    "dropout on the shortcut": {"shortcut": configured(DropoutShortcut, rate=0.5)},
}


class Crash(Exception):
    """Stands for a power cut."""


@dataclasses.dataclass
class Crashing(Told):
    """Stops the process's work when step 10 was dispatched: the checkpoint of step 8 is there, and work after it is lost."""

    def advance(self, step: int) -> None:
        if step == 10:
            raise Crash


@pytest.mark.slow
@pytest.mark.parametrize("part", RANDOM_PARTS)
def test_random_training_repeats_and_resumes_bit_for_bit_and_other_seeds_differ(
    part: str, tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told
) -> None:
    """What is dropped in a step is a function of the run's key and the step."""
    experiment = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **RANDOM_PARTS[part]))
    run = functools.partial(run_lib.run, experiment, data_dir=digits_dir, devices=1)
    digests = [run(seed, tmp_path / name, progress=told)["state_digest"] for name, seed in {"one": 0, "again": 0, "other": 1}.items()]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(Crash):
        run(0, tmp_path / "crashed", progress=Crashing())
    assert not (tmp_path / "crashed" / "result.json").exists()
    assert run(0, tmp_path / "crashed", progress=told)["state_digest"] == digests[0]
    assert "continuing after step 8" in told.messages
    plain = run_lib.run(tiny, 0, tmp_path / "plain", progress=told, data_dir=digits_dir, devices=1)
    assert plain["state_digest"] != digests[0]


@pytest.mark.slow
def test_frozen_parameters_end_as_they_began_and_others_do_not(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    """Bit for bit in the checkpoint of the last step, in the average too; the optimizer keeps nothing for them. Resumed, the same."""
    experiment = dataclasses.replace(
        tiny,
        optimizer=dataclasses.replace(tiny.optimizer, frozen=("stem", "stages/1", "head/linear/kernel"), ema=0.5),
        evaluation=dataclasses.replace(tiny.evaluation, statistics_batches=1),
    )
    result = run_lib.run(experiment, 2, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    made = program.compiled(experiment, 1)
    checkpoints = Checkpoints(Workdir(tmp_path / "run").checkpoints, keep=3, say=told.say)
    restored = checkpoints.restore_newest(made.abstract_state, program.abstract_preprocessing(experiment))
    checkpoints.close()
    assert restored is not None
    assert restored[0] == 12
    began, ended = leaves(made.init(jax.random.key(2)).params), leaves(restored[1].params)
    still = {path for path in began if path.startswith(("stem/", "stages/1/")) or path == "head/linear/kernel"}
    assert 4 < len(still) < len(began)
    for path, leaf in began.items():
        same = np.asarray(leaf).tobytes() == np.asarray(ended[path]).tobytes()
        assert same == (path in still), path
        average = np.asarray(leaves(restored[1].ema)[path])
        assert path not in still or np.allclose(average, leaf, rtol=1e-6, atol=0)
    kept = sum(leaf.size for leaf in jax.tree.leaves(restored[1].opt_state) if leaf.ndim)
    assert kept == sum(np.size(leaf) for path, leaf in began.items() if path not in still)
    with pytest.raises(Crash):
        run_lib.run(experiment, 2, tmp_path / "crashed", progress=Crashing(), data_dir=digits_dir, devices=1)
    again = run_lib.run(experiment, 2, tmp_path / "crashed", progress=told, data_dir=digits_dir, devices=1)
    assert again["state_digest"] == result["state_digest"]


@pytest.mark.slow
def test_the_protocol_of_a_run_says_its_group(tiny: Experiment, digits_dir: str, tmp_path: Path, told: Told) -> None:
    """64 images a step in groups of 16, on eight devices that hold eight of them each: groups are no matter of devices."""
    experiment = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, norm=configured(BatchNorm, group_size=16)))
    losses = []
    for devices in (1, 8):
        result = run_lib.run(experiment, 0, tmp_path / f"run{devices}", progress=told, data_dir=digits_dir, devices=devices)
        assert (result["protocol"]["batch_norm_group"], result["protocol"]["batch_size"]) == (16, 64)
        losses.append([r["loss"] for r in Workdir(tmp_path / f"run{devices}").records() if r["split"] == "train"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
