"""What was saved comes back bit for bit, or not at all: damage is noticed, set aside and said."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def opened(run: Path, messages: list[str] | None = None, keep: int = 3) -> Checkpoints:
    return Checkpoints(run / "checkpoints", keep=keep, say=(messages if messages is not None else []).append)


def restored(run: Path, messages: list[str] | None = None, like: TrainState | None = None) -> tuple[int, TrainState, Preprocessing] | None:
    checkpoints = opened(run, messages)
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
    content = bytearray(file.read_bytes())
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


@pytest.mark.parametrize("file", ["the largest", "the smallest", "state/_METADATA", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("kind", ["a flipped bit", "truncated", "emptied", "deleted"])
def test_damaged_newest_step_is_set_aside_and_the_one_before_it_restored(run: Path, kind: str, file: str) -> None:
    """And said; and the step can be saved again, and is then restored."""
    by_size = sorted(files(run, 3), key=lambda path: path.stat().st_size)
    chosen = {"the largest": by_size[-1], "the smallest": by_size[0]}.get(file, run / "checkpoints" / "3" / file)
    if kind == "a flipped bit":
        flip(chosen)
    elif kind == "deleted":
        chosen.unlink()
    else:
        chosen.write_bytes(chosen.read_bytes()[: chosen.stat().st_size - 1 if kind == "truncated" else 0])
    name = chosen.relative_to(run / "checkpoints" / "3").as_posix()

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


def test_no_file_of_a_checkpoint_changes_unnoticed(saved: Path, tmp_path: Path) -> None:
    """One bit in each, in turn."""
    names = [path.relative_to(saved) for path in files(saved, 3)]
    assert len(names) > 10
    for index, name in enumerate(names):
        run = tmp_path / str(index)
        shutil.copytree(saved, run)
        flip(run / name)
        assert_is(restored(run), 2)


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


def test_checkpoint_of_one_device_is_restored_onto_eight(run: Path) -> None:
    """Bit for bit, whole on every one of them."""
    found = restored(run, like=shapes(state(0), devices=8))
    assert_is(found, 3)
    assert found is not None
    for leaf in jax.tree.leaves(found[1]):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.sharding.is_fully_replicated
    kernel = found[1].params["stages"][0][0]["stacked"]["conv1"]["kernel"]
    assert len({np.asarray(shard.data).tobytes() for shard in kernel.addressable_shards}) == 1


def test_checkpoint_of_eight_devices_is_restored_onto_one(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path)
    checkpoints.save(4, jax.device_put(state(4), mesh.replicated(mesh.make(8))), constants(4))
    checkpoints.close()
    found = restored(tmp_path)
    assert_is(found, 4)
    assert found is not None
    assert len(found[1].params["head"]["bias"].sharding.device_set) == 1


@pytest.mark.parametrize(
    "other",
    [state(0, features=6), state(0, name="conv9"), state(0, dtype=jnp.bfloat16), state(0, averaged=False)],
    ids=["shapes", "names", "dtypes", "averages"],
)
def test_whole_checkpoints_of_another_network_are_refused_and_left_where_they_are(run: Path, other: TrainState) -> None:
    """They are not damaged: to move them away and begin again at step 0 would throw a run away, to cast them would change it."""
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
