"""What was saved comes back bit for bit, or not at all: damage is noticed, set aside and said."""

import gc
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.training import mesh
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.state import TrainState, digest


def state(seed: int, features: int = 5, name: str = "conv1", dtype: Any = jnp.float32, averaged: bool = True) -> TrainState:
    """A state with all that a real one has: nested names and numbers, scalars, integers, a key, an optimizer's tuples."""
    rng = np.random.default_rng(seed)
    units = {name: {"kernel": rng.normal(size=(2, 3, 3, 4, features))}, "norm1": {"scale": rng.normal(size=(2, features))}}
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), {"stages": {0: {0: {"stacked": units}}}, "head": {"bias": rng.normal(size=10)}})
    momentum = jax.tree.map(lambda p: 2 * p, params)
    batch_stats = {"stages": {0: {0: {"stacked": {"norm1": {"mean": jnp.float32(rng.normal(size=(2, features)))}}}}}}
    opt_state = ((), momentum, (jnp.int32(seed), jnp.float32(0.1)))
    averages = {"ema": jax.tree.map(lambda p: p / 2, params), "statistics": jax.tree.map(lambda s: -s, batch_stats)} if averaged else {}
    return TrainState(
        **{"ema": {}, "statistics": {}} | averages,
        step=jnp.int32(seed),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=jax.random.key(seed),
    )


def constants(seed: int) -> Preprocessing:
    rng = np.random.default_rng(1000 + seed)
    return Preprocessing(np.float32(rng.normal(size=(8, 8, 1))), np.float32(rng.normal(size=1)))


def shapes(tree: Any, devices: int = 1) -> Any:
    everywhere = mesh.replicated(mesh.make(devices))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), tree)


def opened(run: Path, messages: list[str] | None = None, keep: int = 3, **options: Any) -> Checkpoints:
    return Checkpoints(run / "checkpoints", keep=keep, say=(messages if messages is not None else []).append, **options)


def restored(
    run: Path, messages: list[str] | None = None, like: TrainState | None = None, **options: Any
) -> tuple[int, TrainState, Preprocessing] | None:
    checkpoints = opened(run, messages, **options)
    try:
        return checkpoints.restore_newest(shapes(state(0)) if like is None else like, shapes(constants(0)))
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the states 1, 2 and 3."""
    run = tmp_path_factory.mktemp("saved")
    checkpoints = opened(run)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), constants(step))
    checkpoints.close()
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files(run: Path, step: int) -> list[Path]:
    return sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes() or b"1")
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def assert_is(found: tuple[int, TrainState, Preprocessing] | None, step: int) -> None:
    assert found is not None
    assert found[0] == step
    assert digest(found[1]) == digest(state(step))
    assert jax.tree.structure(found[1]) == jax.tree.structure(state(step))
    assert np.asarray(found[2].mean).tobytes() == constants(step).mean.tobytes()
    assert np.asarray(found[2].deviation).tobytes() == constants(step).deviation.tobytes()


def test_newest_state_and_constants_come_back_bit_for_bit(run: Path) -> None:
    """With its key, which is a key again."""
    messages: list[str] = []
    found = restored(run, messages)
    assert_is(found, 3)
    assert found is not None
    assert jnp.issubdtype(found[1].key.dtype, jax.dtypes.prng_key)
    assert np.array_equal(jax.random.normal(found[1].key, (3,)), jax.random.normal(jax.random.key(3), (3,)))
    assert messages == []


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert restored(tmp_path) is None
    assert opened(tmp_path).newest() is None


def test_newest_are_kept_and_older_ones_go_with_their_seals(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        checkpoints.save(step, state(step), constants(step))
    checkpoints.close()
    assert checkpoints.newest() == 20
    assert steps(tmp_path) == ["15", "20"]
    assert sorted(path.name for path in (tmp_path / "seals").iterdir()) == ["15.json", "20.json"]
    assert_is(restored(tmp_path), 20)


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    """900 is before 1000, though after it as text."""
    checkpoints = opened(tmp_path)
    for step in (900, 1000):
        checkpoints.save(step, state(step), constants(step))
    checkpoints.close()
    assert_is(restored(tmp_path), 1000)


def test_what_a_kill_left_half_written_is_gone_before_anything_is_saved(run: Path) -> None:
    """At once: deleted in the background, it takes the first save, which is written under such a name, with it."""
    for step in range(4, 204):
        (run / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    checkpoints = opened(run)
    assert steps(run) == ["1", "2", "3"]
    (run / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    checkpoints.close()
    assert steps(run) == ["1", "2", "3", "4.orbax-checkpoint-tmp"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = {"a flipped bit": flip, "truncated": truncate, "emptied": empty, "deleted": Path.unlink}


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", DAMAGES)
def test_step_with_any_file_damaged_is_set_aside_and_the_one_before_it_restored(saved: Path, tmp_path: Path, kind: str) -> None:
    """Each of its files in turn. It is said; and the step can be saved again, and is then restored."""
    names = [path.relative_to(saved / "checkpoints" / "3").as_posix() for path in files(saved, 3)]
    assert len(names) > 10
    for index, name in enumerate(names):
        run = tmp_path / str(index)
        shutil.copytree(saved, run)
        chosen = run / "checkpoints" / "3" / name
        if not chosen.stat().st_size and kind in ("truncated", "emptied"):
            continue  # as it was
        DAMAGES[kind](chosen)

        messages: list[str] = []
        assert_is(restored(run, messages), 2)
        (message,) = messages
        assert message.startswith("checkpoint of step 3 is damaged")
        assert name in message
        assert str(run / "damaged" / "3") in message
        assert steps(run) == ["1", "2"]
        assert (run / "damaged" / "3").is_dir()

        checkpoints = opened(run)
        checkpoints.save(3, state(3), constants(3))
        checkpoints.close()
        assert_is(restored(run), 3)
        shutil.rmtree(run)


@pytest.mark.quick(1)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves coroutines when it meets damage
@pytest.mark.parametrize("kind", ["truncated", "emptied", "deleted"])
def test_step_without_a_seal_is_whole_or_set_aside_whatever_file_is_damaged(
    saved: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a flipped bit cannot be told without one."""
    for index, file in enumerate(files(saved, 3)):
        run = tmp_path / str(index)
        shutil.copytree(saved, run)
        (run / "seals" / "3.json").unlink()
        DAMAGES[kind](run / file.relative_to(saved))
        found = restored(run)
        assert found is not None
        assert_is(found, 3 if (run / "checkpoints" / "3").exists() else 2)
        shutil.rmtree(run)
    caplog.clear()  # what was logged holds the coroutines
    gc.collect()


def test_damage_is_survived_twice_at_the_same_step(run: Path) -> None:
    """The second time, the folder that was set aside first is in the way."""
    for _ in range(2):
        flip(files(run, 3)[-1])
        assert_is(restored(run), 2)
        checkpoints = opened(run)
        checkpoints.save(3, state(3), constants(3))
        checkpoints.close()
    assert_is(restored(run), 3)


def test_restoring_goes_back_as_far_as_it_must(run: Path) -> None:
    messages: list[str] = []
    for step in (2, 3):
        flip(files(run, step)[-1])
    assert_is(restored(run, messages), 1)
    assert [message.split(" is ")[0] for message in messages] == ["checkpoint of step 3", "checkpoint of step 2"]


def test_nothing_whole_is_nothing_restored_and_the_run_can_begin_again(run: Path) -> None:
    for step in (1, 2, 3):
        flip(files(run, step)[-1])
    assert restored(run) is None
    assert sorted(path.name for path in (run / "damaged").iterdir()) == ["1", "2", "3"]
    checkpoints = opened(run)
    checkpoints.save(1, state(1), constants(1))
    checkpoints.close()
    assert_is(restored(run), 1)


def test_step_that_was_committed_just_before_the_process_died_is_used(run: Path) -> None:
    """It has no seal yet, and gets one."""
    (run / "seals" / "3.json").unlink()
    assert_is(restored(run), 3)
    assert (run / "seals" / "3.json").is_file()
    flip(files(run, 3)[-1])
    assert_is(restored(run), 2)


@pytest.mark.parametrize("file", ["state/_METADATA", "preprocessing/_METADATA"])
def test_step_without_a_seal_that_cannot_be_read_is_set_aside(run: Path, file: str) -> None:
    (run / "seals" / "3.json").unlink()
    (run / "checkpoints" / "3" / file).write_bytes(b"")
    messages: list[str] = []
    assert_is(restored(run, messages), 2)
    assert len(messages) == 1
    assert "step 3 is damaged" in messages[0]


@pytest.mark.parametrize("content", ["", '{"a": ', "[]"], ids=["emptied", "cut off", "of another kind"])
def test_damaged_seal_condemns_its_step(run: Path, content: str) -> None:
    """Nothing vouches for it then."""
    (run / "seals" / "3.json").write_text(content)
    messages: list[str] = []
    assert_is(restored(run, messages), 2)
    assert "step 3" in messages[0]


def test_saving_a_step_that_is_not_newer_is_an_error(run: Path) -> None:
    """Orbax itself would save nothing and say nothing."""
    checkpoints = opened(run)
    with pytest.raises(AssertionError, match="step 2 is not newer than 3"):
        checkpoints.save(2, state(2), constants(2))
    checkpoints.close()


def laid_out(tree: Any, devices: int, parts: int) -> Any:
    """Shardings over ``devices``: whole on every one, or their first axis that divides cut into ``parts``."""
    over = jax.make_mesh((1, devices // parts, parts), ("seed", "data", "fsdp"), devices=jax.devices()[:devices])

    def of_leaf(leaf: Any) -> NamedSharding:
        cut = next((axis for axis, size in enumerate(leaf.shape) if parts > 1 and size % parts == 0), None)
        return NamedSharding(over, PartitionSpec(*(() if cut is None else (None,) * cut + ("fsdp",))))

    return jax.tree.map(of_leaf, tree)


LAYOUTS = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4), (8, 2), (8, 8)]
"""Devices, and parts that arrays are cut into over them."""


@pytest.fixture(scope="module")
def laid_out_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """A run saved in each of them."""
    runs = {}
    for devices, parts in LAYOUTS:
        runs[devices, parts] = run = tmp_path_factory.mktemp("layouts") / "run"
        placed = jax.device_put(state(4, features=8), laid_out(state(4, features=8), devices, parts))
        assert parts == 1 or not placed.params["stages"][0][0]["stacked"]["norm1"]["scale"].is_fully_replicated
        checkpoints = opened(run)
        checkpoints.save(4, placed, constants(4))
        checkpoints.close()
    return runs


@pytest.mark.quick(2)
@pytest.mark.parametrize(("devices", "parts"), LAYOUTS)
def test_checkpoint_of_any_layout_is_restored_onto_any_other(laid_out_runs: dict[tuple[int, int], Path], devices: int, parts: int) -> None:
    """Bit for bit, and laid out as asked."""
    shapes_of = jax.eval_shape(lambda: state(0, features=8))
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes_of,
        laid_out(shapes_of, devices, parts),
    )
    for run in laid_out_runs.values():
        found = restored(run, like=like)
        assert found is not None
        assert digest(found[1]) == digest(state(4, features=8))
        for leaf, wanted in zip(jax.tree.leaves(found[1]), jax.tree.leaves(like), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


@pytest.mark.parametrize(
    "other",
    [state(0, features=6), state(0, name="conv9"), state(0, dtype=jnp.bfloat16), state(0, averaged=False)],
    ids=["shapes", "names", "dtypes", "averages"],
)
def test_whole_checkpoints_of_another_network_are_refused_and_left_where_they_are(run: Path, other: TrainState) -> None:
    """They are the run's own, by another version say: to begin again at step 0 would throw a run away, to cast them would change it."""
    with pytest.raises(ValueError, match="step 3"):
        restored(run, like=shapes(other))
    assert steps(run) == ["1", "2", "3"]
    assert not (run / "damaged").exists()
    assert_is(restored(run), 3)


def test_state_without_averages_comes_back_without_them(tmp_path: Path) -> None:
    """Most runs have none: an empty dictionary is not a missing one."""
    plain = state(4, averaged=False)
    checkpoints = opened(tmp_path)
    checkpoints.save(4, plain, constants(4))
    checkpoints.close()
    found = restored(tmp_path, like=shapes(plain))
    assert found is not None
    assert (found[1].ema, found[1].statistics) == ({}, {})
    assert digest(found[1]) == digest(plain)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_step_of_another_run_is_set_aside_and_the_one_before_it_used(tmp_path: Path) -> None:
    """Of the same network, whole, and with the seal of the other run."""
    for name in ("ours", "theirs"):
        checkpoints = opened(tmp_path / name, fingerprint=name)
        for step in (1, 2) if name == "ours" else (3,):
            checkpoints.save(step, state(step), constants(step))
        checkpoints.close()
    for part in ("checkpoints/3", "seals/3.json"):
        (tmp_path / "theirs" / part).rename(tmp_path / "ours" / part)
    messages: list[str] = []
    assert_is(restored(tmp_path / "ours", messages, fingerprint="ours"), 2)
    (message,) = messages
    assert message.startswith("checkpoint of step 3 is of another run: its fingerprint is theirs, and this run's ours; set aside in ")
    assert steps(tmp_path / "ours") == ["1", "2"]
    assert (tmp_path / "ours" / "damaged" / "3").is_dir()
    checkpoints = opened(tmp_path / "ours", fingerprint="ours")
    checkpoints.save(3, state(3), constants(3))
    checkpoints.close()
    assert_is(restored(tmp_path / "ours", fingerprint="ours"), 3)


def test_checkpoints_without_a_fingerprint_are_the_runs(run: Path) -> None:
    """Earlier versions wrote none."""
    messages: list[str] = []
    assert_is(restored(run, messages, fingerprint="ours"), 3)
    assert messages == []


def test_reader_changes_nothing(run: Path) -> None:
    """What the run is writing meanwhile is not a remnant, and what is damaged is the run's to set aside."""
    flip(files(run, 3)[-1])
    (run / "seals" / "2.json").unlink()
    (run / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "4.orbax-checkpoint-tmp" / "half").write_text("...")
    before = content(run)
    messages: list[str] = []
    assert_is(restored(run, messages, read_only=True), 2)
    assert content(run) == before
    assert not (run / "damaged").exists()
    (message,) = messages
    assert message.startswith("checkpoint of step 3 is damaged")
    assert message.endswith("; going on with the one before it")


def test_best_and_every_kth_stay_beside_the_newest(tmp_path: Path) -> None:
    """Over several sessions; the rest goes, with its seals. What is not finite or was not scored is never best."""
    errors = {1: 9.0, 2: float("nan"), 3: 5.0, 4: None, 5: 7.0, 6: float("-inf"), 7: 8.0, 8: None}
    for step, error in errors.items():
        checkpoints = opened(tmp_path, keep=1, best=1, keep_every=4)
        checkpoints.save(step, state(step), constants(step), error)
        assert checkpoints.best() == (1 if step < 3 else 3)
        checkpoints.close()
    assert steps(tmp_path) == ["3", "4", "8"]
    assert sorted(path.name for path in (tmp_path / "seals").iterdir()) == ["3.json", "4.json", "8.json"]
    again = opened(tmp_path)
    assert again.best() == 3
    again.drop_after(2)
    assert again.best() is None
    again.close()


def test_damaged_step_is_not_best_and_stops_nobody(run: Path) -> None:
    """Its score cannot be read; it is set aside when it is to be restored."""
    empty(run / "checkpoints" / "2" / "_CHECKPOINT_METADATA")
    checkpoints = opened(run, keep=1, best=1)
    assert checkpoints.best() is None
    checkpoints.save(4, state(4), constants(4), 3.0)
    checkpoints.close()
    assert checkpoints.best() == 4
