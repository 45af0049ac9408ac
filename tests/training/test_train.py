"""The training function: what it records, how it ends, and that a stopped run continues to the same bits."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError
from resnet_jax.models import Execution, StochasticDepth
from resnet_jax.models.blocks import Basic
from resnet_jax.models.components import component
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.shortcuts import ExclusiveGating, NoShortcut
from resnet_jax.studies import score as score_lib
from resnet_jax.training import sharding
from resnet_jax.training import train as train_lib
from resnet_jax.training.config import Checkpointing, Evaluation, Experiment, Loss, Optimizer, Schedule
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.train import Interruption, train

from conftest import Told

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(digits_dir: str) -> Run:
    def run(experiment: Experiment, folder: Path, told: Told | None = None, **options: Any) -> dict[str, Any]:
        return train(experiment, 3, folder, callbacks=[told or Told()], data_dir=digits_dir, **{"devices": 1} | options)

    return run


@pytest.fixture(scope="module")
def everything_random(tiny: Experiment) -> Experiment:
    """Dropout, stochastic depth, crops and flips, an average with precise statistics; validation and training images are scored too."""
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, branch=component(Basic, dropout=0.2), stochastic_depth=StochasticDepth(survival=0.7)),
        data=dataclasses.replace(tiny.data, flip=True, validation_examples=437),
        optimizer=dataclasses.replace(tiny.optimizer, ema=0.9),
        evaluation=dataclasses.replace(tiny.evaluation, statistics_batches=2, training_images=True),
    )


@pytest.fixture(scope="module")
def undisturbed(everything_random: Experiment, run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Result and directory of a run that is never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return run(everything_random, folder), folder


def without_clocks(folder: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in Workdir(folder).records()]


class Crash(Exception):
    """A power cut."""


@dataclasses.dataclass
class Stopping(Told):
    """Acts when a step is dispatched, or a record of a split is written."""

    act: Callable[[], None] = lambda: None
    at: int = 0
    split: str = ""

    def start(self, run: Any) -> None:
        super().start(run)
        self.step(0, None)

    def step(self, step: int, metrics: object) -> None:
        if step == self.at and not self.split:
            self.act()

    def record(self, record: dict) -> None:
        if (record["step"], record["split"]) == (self.at, self.split):
            self.act()


def crash() -> None:
    raise Crash


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_run_writes_records_and_result(tiny: Experiment, run: Run, tmp_path: Path, told: Told) -> None:
    result = run(tiny, tmp_path / "run", told)
    records = Workdir(tmp_path / "run").records()
    assert records == told.records
    assert [r["step"] for r in records if r["split"] == "test"] == [6, 12]
    train = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 13))
    # Two warm-up steps at 0.01, then 0.05, a tenth from step 6 on and a hundredth from step 9 on, counted from 0.
    np.testing.assert_allclose([r["learning_rate"] for r in train], [0.01] * 2 + [0.05] * 4 + [0.005] * 3 + [0.0005] * 3, rtol=1e-6)
    assert result == Workdir(tmp_path / "run").result()
    assert (result["examples"], result["seed"], result["steps"], result["split"]) == (360, 3, 12, "test")
    assert result["value"] == records[-1]["error_percent"]
    assert result["best_over_training"] == min(r["error_percent"] for r in records if r["split"] == "test")
    assert result["protocol"]["training_images"] == 1437
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert run(tiny, tmp_path / "run", told) == result
    assert "finished" in told.messages[-1]


def test_validation_images_are_held_out_and_scored(undisturbed: tuple[dict[str, Any], Path], digits_dir: str) -> None:
    """By averaged parameters with precise statistics, as those of the checkpoint."""
    result, folder = undisturbed
    records = Workdir(folder).records()
    assert result["protocol"]["training_images"] == 1000
    assert {(r["split"], r["examples"]) for r in records if "examples" in r} == {("test", 360), ("validation", 437), ("train_scored", 1000)}
    assert result["training_error_of"] == "all training images, last step"
    validation, test = ({r["step"]: r["error_percent"] for r in records if r["split"] == split} for split in ("validation", "test"))
    assert result["selected_on_validation"] == test[min(validation, key=lambda step: validation[step])]
    (scored,) = score_lib.score(folder, data=None, split=None, batch_size=72, data_dir=digits_dir)
    assert (scored["error_percent"], scored["step"], scored["protocol"]) == (result["value"], 12, result["protocol"])


def test_stopped_run_continues_to_the_same_bits(
    everything_random: Experiment, undisturbed: tuple[dict[str, Any], Path], run: Run, tmp_path: Path
) -> None:
    """Saved at steps 4, 8 and 12, scored at 6 and 12. A signal saves the state at its step, and a score that it cut short is completed."""
    for name, (stopping, error, continued) in {
        "signal before the first step": (Stopping(act=terminate, at=0), Interrupted, 0),
        "crash before a checkpoint": (Stopping(act=crash, at=3), Crash, 0),
        "crash after a checkpoint": (Stopping(act=crash, at=10), Crash, 8),
        "signal": (Stopping(act=terminate, at=5), Interrupted, 5),
        "signal at the first score": (Stopping(act=terminate, at=6, split="test"), Interrupted, 6),
        "signal in the last step": (Stopping(act=terminate, at=12), Interrupted, 12),
    }.items():
        folder, told = tmp_path / name, Told()
        with pytest.raises(error) as caught:
            run(everything_random, folder, stopping)
        assert error is Crash or caught.value.exit_code == 128 + signal.SIGTERM
        assert not (folder / "result.json").exists()
        result = run(everything_random, folder, told)
        assert f"start {continued}/12" in told.messages, name
        assert {k: result[k] for k in ("state_digest", "value")} == {k: undisturbed[0][k] for k in ("state_digest", "value")}, name
        assert without_clocks(folder) == without_clocks(undisturbed[1]), name


@pytest.mark.slow
def test_stopped_run_of_any_rule_continues_to_the_same_bits(tiny: Experiment, run: Run, tmp_path: Path) -> None:
    """Also with a schedule of optax, and the warm-up that ends at a training error."""
    schedule = Schedule(rule="cosine_decay_schedule(init_value=0.05, decay_steps=12)", warmup_steps=2, warmup_until_error=0.8)
    evaluation = dataclasses.replace(tiny.evaluation, statistics_batches=1)
    for rule in ("adamw(weight_decay=0.05)", "muon", "sam", "schedule_free_sgd", "prodigy"):
        experiment = dataclasses.replace(tiny, optimizer=Optimizer(rule=rule, clip=1.0), schedule=schedule, evaluation=evaluation)
        undisturbed = run(experiment, tmp_path / rule / "undisturbed")
        with pytest.raises(Interrupted):
            run(experiment, tmp_path / rule / "stopped", Stopping(act=terminate, at=5))
        told = Told()
        continued = run(experiment, tmp_path / rule / "stopped", told)
        assert "start 5/12" in told.messages
        assert continued["state_digest"] == undisturbed["state_digest"], rule
        assert continued["protocol"]["optimizer"] == rule
        assert (continued["protocol"]["momentum"] is None) == (rule != "sam")


@pytest.mark.slow
def test_dispatches_end_where_a_record_score_or_checkpoint_is_due(tiny: Experiment, run: Run, tmp_path: Path, told: Told) -> None:
    """Every 2, 20 and 5 steps."""
    execution = dataclasses.replace(tiny.execution, steps_per_dispatch=3)
    fields = dict(checkpointing=Checkpointing(every=5), evaluation=Evaluation(every=20, batch_size=72), execution=execution)
    run(dataclasses.replace(tiny, steps=20, **fields), tmp_path / "run", told)
    assert told.steps == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]
    assert [record["step"] for record in told.records if record["split"] == "train"] == told.steps


@dataclasses.dataclass
class Clock(Told):
    """Odd steps take two seconds, even ones none; compilation and scores take 100 each."""

    seconds: float = 0.0

    def start(self, run: object) -> None:
        self.seconds += 100

    def step(self, step: int, metrics: object) -> None:
        self.seconds += 2 * (step % 2)

    def record(self, record: dict) -> None:
        super().record(record)
        self.seconds += 100 * (record["split"] == "test")


def test_rates_are_those_since_the_last_score(tiny: Experiment, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatches can block or end at once."""
    clock = Clock()
    monkeypatch.setattr(train_lib, "time", types.SimpleNamespace(perf_counter=lambda: clock.seconds))
    run(tiny, tmp_path / "run", clock)
    rates = [record["images_per_second"] / tiny.batch_size for record in clock.records if record["split"] == "train"]
    np.testing.assert_allclose(rates, [1 / 2, 2 / 2, 3 / 4, 4 / 4, 5 / 6, 6 / 6] * 2)


def test_nothing_non_finite_is_saved(tiny: Experiment, run: Run, tmp_path: Path) -> None:
    """Parameters overflow in step 6, before a checkpoint is due, or in step 8, which is saved."""
    fields = dict(optimizer=Optimizer(rates=(("stages", 1e30),)), evaluation=Evaluation(every=12, batch_size=72))
    for warmup, step, message in ((5, 7, "the loss of step 7"), (7, 8, "the update of step 8")):
        schedule = Schedule(learning_rate=1e30, decay_steps=(), warmup_learning_rate=1e-32, warmup_steps=warmup)
        experiment, folder = dataclasses.replace(tiny, schedule=schedule, **fields), tmp_path / f"{step}"
        with pytest.raises(NonFiniteLoss, match=f"{message} is non-finite: the last good checkpoint is that of step 4"):
            run(experiment, folder)
        diverged = json.loads((folder / "diverged.json").read_text())
        assert (diverged["value"], diverged["diverged_at_step"], diverged["state_digest"]) == (100.0, step, None)
        assert not (folder / "result.json").exists()
        assert [path.name for path in (folder / "checkpoints").glob("[0-9]*")] == ["4"]
        assert all(np.isfinite(record["loss"]) for record in Workdir(folder).records())
        with pytest.raises(NonFiniteLoss, match=f"step {step} is non-finite: the last good checkpoint is that of step 4"):
            run(experiment, folder)


class Raising(NoShortcut):
    """A user's shortcut with an error."""

    def __call__(self, x: Any, branch: Any) -> Any:
        raise RuntimeError("mine")


def test_invalid_input_is_rejected_before_anything_is_written(tiny: Experiment, run: Run, tmp_path: Path) -> None:
    def model(**fields: Any) -> Experiment:
        return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **fields))

    for experiment in (
        model(shortcut=Raising),
        dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, color=Raising)),
        dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, name="nothing")),
        model(num_classes=7),
        model(features=(8, 4, 4)),  # option A cannot shrink
        model(output_stride=16),
        model(norm=component(GroupNorm, num_groups=3)),
        dataclasses.replace(tiny, optimizer=Optimizer(frozen=("stages/0", "stm"))),
        dataclasses.replace(tiny, optimizer=Optimizer(rates=(("stages", 0.1), ("stagess/1", 0.3)))),
    ):
        with pytest.raises(UserError):
            run(experiment, tmp_path / "run", devices=8)
    with pytest.raises(UserError, match=rf"^the experiment cannot be traced: {__file__}, line \d+: RuntimeError: mine$"):
        run(model(shortcut=Raising), tmp_path / "run")
    # JAX has the same key for seeds that differ in higher bits.
    for seed in (-1, 2**32, 10**20):
        with pytest.raises(UserError, match=rf"^seed must be .*, got {seed}\."):
            train(tiny, seed, tmp_path / "run")
    with pytest.raises(UserError, match="^profile_steps must be at least 0, got -1"):
        run(tiny, tmp_path / "run", profile_steps=-1)
    assert not (tmp_path / "run").exists()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A bad byte, a lost, empty or foreign line, a cut, or other content."""
    lines, place = data.split(b"\n"), int(rng.integers(len(data) + 1))
    number = int(rng.integers(len(lines)))
    foreign = [b"", b"{}", b"[]", b"null", b'"x"', b"1e999", b'{"step": "1", "split": 3}', bytes(rng.bytes(20))][int(rng.integers(8))]
    return [
        data[:place] + bytes(rng.bytes(1)) + data[place + 1 :],
        data[:place],
        data[:place] + data[place + int(rng.integers(1, 50)) :],
        b"\n".join(lines[:number] + lines[number + 1 :]),
        b"\n".join([*lines[:number], foreign, *lines[number + 1 :]]),
        foreign,
    ][int(rng.integers(6))]


@pytest.mark.parametrize("damages", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_text_files_are_repaired_or_named(damages: int, short: Experiment, short_run: Path, run: Run, tmp_path: Path) -> None:
    """Of a finished run, and of one whose result is not yet written: the same result, or one error with the name of the file."""

    def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in result.items() if "seconds" not in name}

    expected = Workdir(short_run).result()
    assert expected
    names = ["experiment.json", "environment.json", "metrics.jsonl", "result.json", "checkpoints/4/manifest.json"]
    names += ["checkpoints/2/manifest.json", "checkpoints/4/metrics/metrics", "checkpoints/4/default/_METADATA", "run.lock"]
    for seed in range(damages):
        rng, folder, told = np.random.default_rng(seed), tmp_path / str(seed), Told()
        shutil.copytree(short_run, folder)
        if seed % 2:
            (folder / "result.json").unlink()
        file = folder / names[seed // 2 % len(names)]
        before = file.read_bytes() if file.exists() else b""
        file.write_bytes(after := damaged(before, rng))
        result, message = expected, file.name
        try:
            result = run(short, folder, told)
        except UserError as error:
            message = str(error)
        assert file.name in message, (seed, message)
        same = {"records_digest": ""}  # of the seconds too
        assert without_seconds(result) | same == without_seconds(expected) | same, (seed, file.name, after)
        if file.name == "metrics.jsonl" and seed % 2:
            assert Workdir(folder).records() == Workdir(short_run).records()
            intact = after.startswith(before)
            assert any("records are restored" in message for message in told.messages) != intact, (seed, after)


def test_experiments_that_compute_the_same_share_compiled_functions(tiny: Experiment) -> None:
    """Name, data set, length and evaluation do not matter, nor the initialization of gates."""
    compiled = sharding.compiled(tiny, 1)
    data = dataclasses.replace(tiny.data, name="x")
    other = dataclasses.replace(tiny, name="other", steps=99, evaluation=Evaluation(every=7), data=data)
    assert (sharding.compiled(other, 1).train, sharding.compiled(other, 1).init) == (compiled.train, compiled.init)
    for fields in ({"batch_size": 8}, {"loss": Loss(smoothing=0.1)}, {"execution": Execution(blocks="loop")}):
        assert sharding.compiled(dataclasses.replace(tiny, **fields), 1).train is not compiled.train
    assert sharding.compiled(tiny, 8).train is not compiled.train
    gated = component(ExclusiveGating, bias=-6.0), component(ExclusiveGating, bias=-7.0)
    models = [dataclasses.replace(tiny.model, shortcut=shortcut) for shortcut in gated]
    six, seven = (sharding.compiled(dataclasses.replace(tiny, model=model), 1) for model in models)
    assert six.train is seven.train
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(seven.init(jax.random.key(0)).params) if "gate_bias" in str(path)]
    assert {float(value) for leaf in biases for value in np.unique(leaf)} == {-7.0}


def test_profile_has_a_trace_of_steps(tiny: Experiment, run: Run, tmp_path: Path, told: Told) -> None:
    run(tiny, tmp_path / "run", told, profile_steps=2)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert f"profile of the run in {tmp_path / 'run' / 'profile'}" in told.messages
    (tmp_path / "run" / "result.json").unlink()
    run(tiny, tmp_path / "run", told, profile_steps=2)
    assert "no step was profiled" in told.messages[-1]


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def test_first_signal_is_recorded_and_a_later_ctrl_c_reaches_the_earlier_handler() -> None:
    """A scheduler that repeats its signal does not end the save. Earlier handlers are restored, also after an error."""
    reached: list[int] = []

    def handler(number: int, _: Any) -> None:
        reached.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        for first, second in itertools.product(SIGNALS, SIGNALS):
            reached.clear()
            with contextlib.suppress(RuntimeError), Interruption() as interruption:
                assert interruption.requested == 0
                os.kill(os.getpid(), first)
                assert (interruption.requested, reached) == (first, [])
                os.kill(os.getpid(), second)
                assert (interruption.requested, reached) == (first, [second] * (second == signal.SIGINT))
                raise RuntimeError
            assert [signal.getsignal(number) for number in SIGNALS] == [handler] * 3
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
