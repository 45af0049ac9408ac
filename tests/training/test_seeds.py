"""Several seeds in one program: each is the run that it is by itself, whoever is beside it, whenever it was stopped."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Told
from jax.flatten_util import ravel_pytree

from resnet_jax.configured import configured
from resnet_jax.data import augmentation, order, sources
from resnet_jax.models.shortcuts import ExclusiveGating, Scaled
from resnet_jax.studies import run as run_lib
from resnet_jax.studies import study
from resnet_jax.training import mesh, program, step
from resnet_jax.training import seeds as seeds_lib
from resnet_jax.training.experiment import Checkpointing, Evaluation, Experiment
from resnet_jax.training.interruption import Interrupted
from resnet_jax.training.loop import NonFiniteLoss
from resnet_jax.training.program import Program
from resnet_jax.training.workdir import Workdir

SEEDS = (3, 1, 4, 15)
# (devices, seeds beside each other): all on one device; one on each of four; two on each of two; one on each pair of eight.
LAYOUTS = {"vmap": (1, 1), "devices": (4, 4), "both": (2, 2), "devices and data": (8, 4), "vmap and data": (8, 1)}
TESTED = ["vmap", "devices", *(pytest.param(name, marks=pytest.mark.slow) for name in ("both", "devices and data", "vmap and data"))]


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> sources.Examples:
    return sources.read(sources.describe("digits", digits_dir), "train")


def begin(made: Program, seeds: tuple[int, ...] = SEEDS) -> Any:
    return made.stack([made.init(jax.random.key(seed)) for seed in seeds])


@pytest.mark.quick(1)
@pytest.mark.parametrize("layout", TESTED)
def test_initialisation_order_crops_and_flips_of_every_seed_are_exactly_its_own(
    layout: str, tiny: Experiment, digits: sources.Examples
) -> None:
    """Bit for bit, over the end of an epoch: steps 21 to 23 of 1,437 images, 64 at a time."""
    devices, beside = LAYOUTS[layout]
    made, single = program.compiled(tiny, devices, beside), program.compiled(tiny, 1)
    states = begin(made)
    for seed, state in zip(SEEDS, made.unstack(states), strict=True):
        alone = single.init(jax.random.key(seed))
        jax.tree.map(np.testing.assert_array_equal, (state.params, state.batch_stats), (alone.params, alone.batch_stats))

    def shown(key: jax.Array, data: step.Resident) -> jax.Array:
        indices = order.batch_indices(jax.random.fold_in(key, 1), jnp.int32(21), steps=3, batch_size=64, examples=len(digits))
        keys = jax.random.split(jax.random.fold_in(key, 2), 3)
        batches = step.Batches(64, augmentation.Augmentation(pad=2, flip=True), 10)
        return jax.vmap(lambda chosen, key: batches(key, *data.chosen(chosen)).images)(indices, keys)

    data = made.place(digits, augmentation.fit(digits.images, "channel"))
    together = jax.jit(mesh.over_seeds(shown, made.mesh))(states.key, data)
    alone_data = single.place(digits, augmentation.fit(digits.images, "channel"))
    for seed, images in zip(SEEDS, together, strict=True):
        assert np.asarray(images).tobytes() == np.asarray(jax.jit(shown)(jax.random.key(seed), alone_data)).tobytes()


@pytest.fixture(scope="module")
def alone(tiny: Experiment, digits: sources.Examples) -> list[Any]:
    """Each seed's state and metrics after three steps by itself."""
    made, found = program.compiled(tiny, 1), []
    data = made.place(digits, augmentation.fit(digits.images, "pixel_mean"))
    for seed in SEEDS:
        states, _ = made.train(begin(made, (seed,)), data, 1)
        states, metrics = made.train(states, data, 2)
        found.append((made.unstack(states)[0], jax.tree.map(lambda m: m[0], jax.device_get(metrics))))
    return found


@pytest.mark.quick(1)
@pytest.mark.parametrize("layout", TESTED)
def test_three_steps_of_every_seed_equal_its_own_to_1e_5(layout: str, tiny: Experiment, digits: sources.Examples, alone: list[Any]) -> None:
    """Parameters relative to their length; metrics of every step in their order."""
    devices, beside = LAYOUTS[layout]
    made = program.compiled(tiny, devices, beside)
    data = made.place(digits, augmentation.fit(digits.images, "pixel_mean"))
    states, _ = made.train(begin(made), data, 1)
    states, metrics = made.train(states, data, 2)
    assert metrics.loss.shape == (4, 2)
    fetched = jax.device_get(metrics)
    for index, (state, (theirs, their_metrics)) in enumerate(zip(made.unstack(states), alone, strict=True)):
        ours, expected = (np.asarray(ravel_pytree(tree)[0]) for tree in (state.params, theirs.params))
        assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
        assert int(state.step) == 3
        np.testing.assert_allclose(fetched.loss[index], their_metrics.loss, rtol=1e-5)
        assert fetched.errors[index].tolist() == their_metrics.errors.tolist()
    lengths = [np.linalg.norm(ravel_pytree(a.params)[0] - ravel_pytree(b.params)[0]) for (a, _), (b, _) in itertools.pairwise(alone)]
    assert min(lengths) > 1, "the tolerance means something only where seeds differ by more"


def test_seeds_on_devices_of_their_own_do_not_communicate(tiny: Experiment, digits: sources.Examples) -> None:
    made = program.compiled(tiny, 4, 4)
    data = made.place(digits, augmentation.fit(digits.images, "pixel_mean"))
    compiled = made.train.lower(begin(made), data, steps=1).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    assert "num_partitions=4" in compiled
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter") if name in compiled]


def test_experiments_that_compute_alike_share_their_programs(tiny: Experiment) -> None:
    """Name, data set, length, evaluation; of the gates' biases all but the initialisation."""
    made = program.compiled(tiny, 1)
    other = dataclasses.replace(
        tiny,
        name="other",
        steps=99,
        evaluation=Evaluation(every=7),
        checkpointing=Checkpointing(every=3),
        data=dataclasses.replace(tiny.data, name="x"),
    )
    assert program.compiled(other, 1) is made
    assert program.compiled(dataclasses.replace(tiny, batch_size=8), 1).train is not made.train

    def with_shortcut(shortcut: Any) -> Program:
        return program.compiled(dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, shortcut=shortcut)), 1)

    six, seven = (with_shortcut(configured(ExclusiveGating, bias=bias)) for bias in (-6.0, -7.0))
    assert six.train is seven.train
    biases = [np.unique(leaf) for path, leaf in jax.tree.leaves_with_path(seven.init(jax.random.key(0)).params) if "gate_bias" in str(path)]
    assert biases
    assert all(values.tolist() == [-7.0] for values in biases)
    assert with_shortcut(configured(Scaled, shortcut=0.5)).train is not with_shortcut(configured(Scaled, shortcut=0.25)).train


def fresh(base: Path, seeds: tuple[int, ...] = SEEDS) -> dict[int, Path]:
    return {seed: base / f"seed-{seed}" for seed in seeds}


@pytest.fixture(scope="module")
def run(digits_dir: str) -> Callable[..., list[dict[str, Any]]]:
    return functools.partial(run_lib.run_together, data_dir=digits_dir, devices=1)


@pytest.fixture(scope="module")
def straight(tiny: Experiment, run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of the four seeds vectorised and never stopped."""
    return run(tiny, fresh(tmp_path_factory.mktemp("straight")), progress=Told())


@pytest.mark.slow
def test_a_whole_run_finds_the_errors_of_single_ones(
    tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], digits_dir: str, tmp_path: Path
) -> None:
    """Within the spread of single runs over their seeds; in folders that are those of single runs."""
    singles = [
        run_lib.run(tiny, seed, tmp_path / "single" / str(seed), progress=Told(), data_dir=digits_dir, devices=1)["value"] for seed in SEEDS
    ]
    spread = np.std(singles, ddof=1)
    beside = run_lib.run_together(tiny, fresh(tmp_path / "beside"), progress=Told(), data_dir=digits_dir, devices=4, spread=True)
    for found in (straight, beside):
        assert [result["seed"] for result in found] == list(SEEDS)
        assert np.abs(np.array([result["value"] for result in found]) - singles).max() <= spread
        assert all(result["seeds_together"] == 4 for result in found)
    assert spread > 0
    ours, theirs = (
        json.loads((folder / "experiment.json").read_text()) for folder in (tmp_path / "single" / "3", tmp_path / "beside" / "seed-3")
    )
    assert ours == theirs
    kinds = [{path.name for path in folder.iterdir()} for folder in (tmp_path / "single" / "3", tmp_path / "beside" / "seed-3")]
    assert kinds[0] == kinds[1]


class Killed(Exception):
    pass


class Kill(Told):
    """Ends the process, so to speak, when a step is dispatched."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def advance(self, step: int) -> None:
        if step == self.at:
            raise Killed


def digests(results: list[dict[str, Any]]) -> list[str]:
    return [result["state_digest"] for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 9])
def test_a_stopped_vector_goes_on_to_the_same_bits(
    at: int, tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    """Before its first checkpoint (of step 4), and after that of step 8."""
    with pytest.raises(Killed):
        run(tiny, fresh(tmp_path), progress=Kill(at))
    told = Told()
    assert digests(run(tiny, fresh(tmp_path), progress=told)) == digests(straight)
    assert ("continuing after step 8" in told.messages) == (at == 9)


@pytest.mark.slow
def test_a_seed_caught_a_save_ahead_of_the_others_goes_back_with_them(
    tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    folders = fresh(tmp_path)
    with pytest.raises(Killed):
        run(tiny, folders, progress=Kill(9))
    for seed in SEEDS[2:]:
        shutil.rmtree(folders[seed] / "checkpoints" / "8")
        (folders[seed] / "seals" / "8.json").unlink(missing_ok=True)
    told = Told()
    assert digests(run(tiny, folders, progress=told)) == digests(straight)
    assert [message for message in told.messages if "continuing" in message] == ["continuing after step 4"]
    steps = [record["step"] for record in Workdir(folders[3]).records() if record["split"] == "train"]
    assert steps == list(range(1, 13)), "what was measured twice is told once"


@pytest.mark.slow
def test_seeds_left_far_apart_each_go_on_from_where_they_were(
    tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    """Nobody's work is thrown away: two at 8, two not begun. To rounding: they ran in pairs."""
    folders = fresh(tmp_path)
    with pytest.raises(Killed):
        run(tiny, {seed: folders[seed] for seed in SEEDS[:2]}, progress=Kill(9))
    told = Told()
    found = run(tiny, folders, progress=told)
    assert [message for message in told.messages if message.startswith("start")] == ["start 0/12", "start 8/12"]
    assert [result["seeds_together"] for result in found] == [2, 2, 2, 2]
    np.testing.assert_allclose([r["value"] for r in found], [r["value"] for r in straight], atol=2)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_one_seed_takes_all_of_them_a_save_back(
    tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    folders = fresh(tmp_path)
    with pytest.raises(Killed):
        run(tiny, folders, progress=Kill(9))
    file = max((folders[1] / "checkpoints" / "8").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    told = Told()
    assert digests(run(tiny, folders, progress=told)) == digests(straight)
    assert any("is damaged" in message for message in told.messages)
    assert "continuing after step 4" in told.messages


@pytest.mark.slow
def test_a_seed_whose_checkpoints_are_all_damaged_does_not_take_the_others_back(
    tiny: Experiment, straight: list[dict[str, Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    """Two seeds were at step 8, a save every 2 steps and two kept: one begins anew, the other goes on from 8."""
    often = dataclasses.replace(tiny, checkpointing=Checkpointing(every=2, keep=2))
    folders = fresh(tmp_path, SEEDS[:2])
    with pytest.raises(Killed):
        run(often, folders, progress=Kill(9))
    for damaged in (6, 8):
        file = max((folders[1] / "checkpoints" / str(damaged)).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    told = Told()
    found = run(often, folders, progress=told)
    assert [message for message in told.messages if message.startswith("start")] == ["start 0/12", "start 8/12"]
    np.testing.assert_allclose([r["value"] for r in found], [r["value"] for r in straight[:2]], atol=2)


@pytest.mark.slow
def test_seeds_that_wait_for_devices_leave_finished_ones_their_results(
    tiny: Experiment, straight: list[dict[str, Any]], digits_dir: str, tmp_path: Path
) -> None:
    """Three seeds on two devices: killed while the third trains, the first two have their results, and are not trained again."""
    seldom, folders = dataclasses.replace(tiny, checkpointing=Checkpointing(every=1000)), fresh(tmp_path / "tiny", SEEDS[:3])

    class Watching:
        def __init__(self, told: Told):
            self.told = told

        @contextlib.contextmanager
        def running(self, cell: Experiment, seeds: Sequence[int]) -> Iterator[Told]:
            yield self.told

        def finished(self, cell: Experiment, results: Sequence[dict[str, Any]]) -> None:
            pass

    class KillThird(Told):
        starts = 0

        def start(self, step: int, steps: int) -> None:
            super().start(step, steps)
            self.starts += 1

        def advance(self, step: int) -> None:
            if self.starts == 2 and step == 3:
                raise Killed

    def run(told: Told) -> None:
        watching = Watching(told)
        study.run([seldom], SEEDS[:3], tmp_path, watcher=watching, data_dir=digits_dir, devices=2, seed_parallel="devices")

    with pytest.raises(Killed):
        run(KillThird())
    before = {seed: (folders[seed] / "result.json").read_bytes() for seed in SEEDS[:2]}
    told = Told()
    run(told)
    found = [json.loads((folder / "result.json").read_text()) for folder in folders.values()]
    assert [message for message in told.messages if message.startswith("start")] == ["start 0/12"]
    assert {seed: (folders[seed] / "result.json").read_bytes() for seed in SEEDS[:2]} == before
    np.testing.assert_allclose([r["value"] for r in found], [r["value"] for r in straight[:3]], atol=2)


def test_seeds_beside_each_other_use_as_many_devices_as_divide_their_batches(tiny: Experiment) -> None:
    """Seven devices for two seeds of 14 images and 72 to score: two a seed, not three."""
    made = program.compiled(dataclasses.replace(tiny, batch_size=14), 7, 2)
    assert dict(made.mesh.shape) == {"seed": 2, "data": 2, "fsdp": 1}


def test_a_signal_in_the_last_step_stops_before_the_score(tiny: Experiment, digits_dir: str, tmp_path: Path) -> None:
    """The state is saved; the same command scores it."""

    class Terminated(Told):
        def advance(self, step: int) -> None:
            if step == 12:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run_lib.run(tiny, 3, tmp_path / "run", progress=Terminated(), data_dir=digits_dir, devices=1)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "result.json").exists()
    told = Told()
    found = run_lib.run(tiny, 3, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert "start 12/12" in told.messages
    assert found == found | {"examples": 360, "diverged_at_step": None}


@pytest.mark.slow
def test_finished_seeds_are_left_alone(tiny: Experiment, run: Callable[..., Any], straight: list[dict[str, Any]], tmp_path: Path) -> None:
    folders = fresh(tmp_path, (3, 1))
    first = run(tiny, {3: folders[3]}, progress=Told())
    before = (folders[3] / "metrics.jsonl").read_bytes()
    found = run(tiny, folders, progress=Told())
    assert found[0] == first[0]
    assert (folders[3] / "metrics.jsonl").read_bytes() == before
    assert found[1]["seed"] == 1


@pytest.mark.slow
def test_a_seed_that_diverges_ends_alone(
    tiny: Experiment,
    straight: list[dict[str, Any]],
    run: Callable[..., Any],
    digits_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 1 begins with an infinite weight. The others end in the bits of the undisturbed four; its result says when it ended."""
    honest = program.compiled

    def poisoned(*arguments: Any, **named: Any) -> Program:
        made = honest(*arguments, **named)

        def init(key: jax.Array) -> Any:
            state = made.init(key)
            if jax.random.key_data(key)[1] != 1:
                return state
            return state._replace(params=jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.inf), state.params))

        return dataclasses.replace(made, init=init)

    monkeypatch.setattr(seeds_lib.program_lib, "compiled", poisoned)
    told, folders = Told(), fresh(tmp_path)
    found = run(tiny, folders, progress=told)
    assert [result["diverged_at_step"] for result in found] == [None, 1, None, None]
    assert [digests(found)[i] for i in (0, 2, 3)] == [digests(straight)[i] for i in (0, 2, 3)]
    assert (found[1]["value"], found[1]["training_error_percent"], found[1]["state_digest"]) == (100.0, 100.0, None)
    assert not any((folders[1] / "checkpoints").glob("[0-9]*")), "nothing that is not finite is saved"
    assert any("seed 1: the loss of step 1 is not finite" in message for message in told.messages)
    with pytest.raises(NonFiniteLoss, match="the loss of step 1"):
        run_lib.run(tiny, 1, folders[1], progress=Told(), data_dir=digits_dir, devices=1)
