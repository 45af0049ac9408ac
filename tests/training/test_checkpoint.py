"""A checkpoint is restored bit for bit or not at all: corruption is detected, quarantined and reported."""

import contextlib
import errno
import functools
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.training import checkpoint, sharding
from resnet_jax.training.checkpoint import Checkpoints, SaveFailed
from resnet_jax.training.config import Checkpointing
from resnet_jax.training.run_dir import MetricsWriter, Workdir, write_json
from resnet_jax.training.step import TrainState, digest

KILOBYTE = 1024
Restored = tuple[int, TrainState, Preprocessing] | None


def state(seed: int, features: int = 5, name: str = "conv1", dtype: Any = jnp.float32, averaged: bool = True) -> TrainState:
    """A state with everything that a real one has: nested names and numbers, scalars, integers, a key, tuples."""
    rng = np.random.default_rng(seed)
    params = {"stages": {0: {name: jnp.asarray(rng.normal(size=(2, 4, features)), dtype)}}, "bias": jnp.asarray(rng.normal(size=8), dtype)}
    statistics = {"stages": {0: {"mean": jnp.float32(rng.normal(size=features))}}}
    return TrainState(
        step=jnp.int32(seed),
        params=params,
        batch_stats=statistics,
        opt_state=((), params, (jnp.int32(seed), jnp.bfloat16(0.1))),
        key=jax.random.key(seed),
        ema=params if averaged else {},
        statistics=statistics if averaged else {},
    )


plain = functools.partial(state, averaged=False)


def large(seed: int) -> TrainState:
    """800 kB that cannot be compressed."""
    params = {"kernel": jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, 200 * KILOBYTE, np.uint32))}
    return TrainState(step=jnp.int32(seed), params=params, batch_stats={}, opt_state=(), key=jax.random.key(seed), ema={}, statistics={})


def constants(seed: int) -> Preprocessing:
    rng = np.random.default_rng(1000 + seed)
    return Preprocessing(np.float32(rng.normal(size=(4, 4, 1))), np.float32(rng.normal(size=1)))


def shapes(tree: Any) -> Any:
    everywhere = sharding.replicated(sharding.make(1))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), tree)


def opened(run: Path, messages: list[str] | None = None, **options: Any) -> Checkpoints:
    kept = Checkpointing(**{name: options.pop(name) for name in ("keep", "best", "keep_every") if name in options})
    return Checkpoints(run / "checkpoints", kept, say=(messages if messages is not None else []).append, **options)


def restored(run: Path, messages: list[str] | None = None, like: TrainState | None = None, **options: Any) -> Restored:
    with contextlib.closing(opened(run, messages, **options)) as checkpoints:
        return checkpoints.restore_newest(shapes(state(0)) if like is None else like, shapes(constants(0)))


def save(run: Path, *steps: int, error: float | None = None, make: Callable[[int], TrainState] = state, **options: Any) -> None:
    with contextlib.closing(opened(run, **options)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(step), constants(step), error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the states 1, 2 and 3."""
    run = tmp_path_factory.mktemp("saved")
    save(run, 1, 2, 3, error=5.0)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files(run: Path, step: int) -> list[Path]:
    return sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def corrupt(run: Path, step: int) -> None:
    """Flips a bit in the middle of the largest file."""
    largest = max(files(run, step), key=lambda path: path.stat().st_size)
    largest.write_bytes(flipped(largest.read_bytes(), 4 * largest.stat().st_size))


def assert_is(outcome: Restored, step: int, make: Callable[[int], TrainState] = state) -> None:
    assert outcome is not None
    assert outcome[0] == step
    assert digest(outcome[1:]) == digest((make(step), constants(step)))
    assert jax.tree.structure(outcome[1]) == jax.tree.structure(make(step))


def test_newest_step_is_restored_bit_for_bit(run: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    assert_is(restored(run, messages), 3)
    assert messages == []
    assert restored(tmp_path / "empty") is None
    # 900 is before 1000, though not as text; empty dictionaries stay empty.
    save(tmp_path / "plain", 900, 1000, make=plain)
    assert_is(restored(tmp_path / "plain", like=shapes(plain(0))), 1000, plain)


def test_corruption_of_any_file_quarantines_the_step(run: Path) -> None:
    """Flipped bits, truncation and deletion of each file; Orbax reads no unverified byte."""
    unread, like = set(), (shapes(state(0)), shapes(constants(0)))
    quarantined = run / "quarantine" / "3"
    for file in files(run, 3):
        data = file.read_bytes()
        bits = sorted({0, 8 * len(data) // 3, 8 * len(data) // 2, 8 * len(data) - 1}) if data else []
        cuts = [data[:-1], data[: len(data) // 2], b""] if data else []
        for changed in [*cuts, *(flipped(data, bit) for bit in bits), None]:
            file.unlink() if changed is None else file.write_bytes(changed)
            messages: list[str] = []
            with contextlib.closing(opened(run, messages)) as checkpoints:
                outcome = checkpoints.restore(3, *like)
            if outcome is None:
                (message,) = messages
                assert message.startswith("checkpoint of step 3 is corrupt: ")
                assert file.name in message
                assert str(quarantined) in message
                assert names(run) == ["1", "2"]
                quarantined.rename(run / "checkpoints" / "3")
            else:
                assert_is((3, *outcome), 3)
                unread.add(file.name)
            file.write_bytes(data)
    assert unread == {"_CHECKPOINT_METADATA", "commit_success.txt"}, "neither has a part of the state"


def test_corrupt_older_step_does_not_prevent_a_save(run: Path, saved: Path) -> None:
    """Orbax opens no directory in which the metrics of one step are corrupt."""
    metrics = run / "checkpoints" / "2" / "metrics" / "metrics"
    corruptions: list[Callable[[], Any]] = [
        lambda: [file.write_bytes(b"") for file in files(run, 2)],
        lambda: [file.unlink() for file in files(run, 2)],
        lambda: metrics.write_text('{"error_percenu": 5.0}'),
    ]
    for step, act in enumerate(corruptions, start=4):
        act()
        save(run, step, keep=3, best=1)
        assert_is(restored(run), step)
        assert "2" not in names(run)
        shutil.copytree(saved / "checkpoints" / "2", run / "checkpoints" / "2")


def test_restore_goes_back_as_far_as_it_must(run: Path) -> None:
    messages: list[str] = []
    for step in (2, 3):
        corrupt(run, step)
    assert_is(restored(run, messages), 1)
    assert [message.split(" is ")[0] for message in messages] == ["checkpoint of step 3", "checkpoint of step 2"]
    # The same step may be corrupt twice.
    save(run, 2)
    corrupt(run, 2)
    assert_is(restored(run), 1)
    corrupt(run, 1)
    assert restored(run) is None
    assert sorted(path.name for path in (run / "quarantine").iterdir()) == ["1", "2", "3"]
    save(run, 1)
    assert_is(restored(run), 1)


def test_partial_steps_are_removed_before_anything_is_saved(run: Path) -> None:
    """A kill leaves them behind."""
    for step in range(4, 104):
        (run / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp").mkdir(parents=True)
    save(run, 4)
    assert names(run) == ["2", "3", "4"]


def test_step_of_another_run_is_quarantined(tmp_path: Path) -> None:
    """Even if it is intact and has the same arrays."""
    save(tmp_path / "ours", 1, 2, fingerprint="ours")
    save(tmp_path / "theirs", 3, fingerprint="theirs")
    (tmp_path / "theirs" / "checkpoints" / "3").rename(tmp_path / "ours" / "checkpoints" / "3")
    messages: list[str] = []
    assert_is(restored(tmp_path / "ours", messages, fingerprint="ours"), 2)
    (message,) = messages
    assert message.startswith("checkpoint of step 3 belongs to another run: its fingerprint is theirs, not ours; moved to ")
    save(tmp_path / "ours", 3, fingerprint="ours")
    assert_is(restored(tmp_path / "ours", fingerprint="ours"), 3)


def test_intact_step_of_another_network_is_an_error_and_stays(run: Path) -> None:
    """Orbax would cast to another dtype."""
    others = {
        "state/batch_stats/stages/0/mean, float32(5,) in the checkpoint and float32(6,) in the experiment": state(0, features=6),
        "state/ema/stages/0/conv1, float32(2, 4, 5) in the checkpoint and absent in the experiment": state(0, name="conv9"),
        "state/ema/bias, float32(8,) in the checkpoint and bfloat16(8,) in the experiment": state(0, dtype=jnp.bfloat16),
        "3 arrays differ, as state/ema/bias, float32(8,) in the checkpoint and absent in the experiment": plain(0),
    }
    for text, other in others.items():
        with pytest.raises(UserError, match="the checkpoint of step 3 is of another network: ") as error:
            restored(run, like=shapes(other))
        assert text in str(error.value)
    assert not (run / "quarantine").exists()
    assert_is(restored(run), 3)


def test_reader_changes_nothing(run: Path) -> None:
    """The partial step may be in progress, and the corrupt one is for the run to quarantine."""
    corrupt(run, 3)
    partial = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "half").write_text("...")
    before = content(run)
    messages: list[str] = []
    assert_is(restored(run, messages, read_only=True), 2)
    assert content(run) == before
    (message,) = messages
    assert message.startswith("checkpoint of step 3 is corrupt")
    assert message.endswith("; continuing with the one before it")


def test_best_and_every_kth_step_stay_beside_the_newest(tmp_path: Path) -> None:
    """Several sessions. A step without a finite error is never best."""
    errors = {1: 9.0, 2: float("nan"), 3: 5.0, 4: None, 5: 7.0, 6: float("-inf"), 7: 8.0, 8: None}
    for step, error in errors.items():
        save(tmp_path, step, error=error, keep=1, best=1, keep_every=4)
    assert names(tmp_path) == ["3", "4", "8"]
    save(tmp_path, 9, 10, 11, error=6.0, keep=2, best=2)
    assert names(tmp_path) == ["10", "11", "3"]
    save(tmp_path, 12, keep=1)
    assert names(tmp_path) == ["12"]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write beyond it fails in this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def checked(checkpoints: Checkpoints) -> None:
    """Calls ``check`` as the training loop does until it raises."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        checkpoints.check()
        time.sleep(0.01)
    pytest.fail("no failure was reported")


def test_failed_save_is_one_error_and_earlier_steps_are_intact(tmp_path: Path) -> None:
    """Whichever call comes next reports it, once."""
    calls: dict[str, Callable[[Checkpoints], Any]] = {
        "check": checked,
        "wait": Checkpoints.wait,
        "close": Checkpoints.close,
        "save": lambda checkpoints: checkpoints.save(3, large(3), constants(3)),
    }
    for name, call in calls.items():
        run = tmp_path / name
        checkpoints = opened(run, keep=1)
        checkpoints.save(1, large(1), constants(1))
        checkpoints.wait()
        with files_of_at_most(300 * KILOBYTE):
            checkpoints.save(2, large(2), constants(2))
            with pytest.raises(
                SaveFailed, match="^the checkpoint of step 2 could not be saved: File too large; the newest is that of step 1. "
            ):
                call(checkpoints)
        assert checkpoints.steps() == [1]
        checkpoints.check()
        checkpoints.close()
        assert_is(restored(run, like=shapes(large(0))), 1, large)
        save(run, 2, keep=1, make=large)
        assert names(run) == ["2"]


def test_save_that_fails_before_or_after_its_files_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Orbax begins, and when the manifest is written."""

    def full(*_: Any, **__: Any) -> None:
        assert "2" not in names(tmp_path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path, 1)
    for owner, name in ((checkpoint, "_checksums"), (ocp.CheckpointManager, "save")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(SaveFailed, match=r"step 2 could not be saved: No space left on device; the newest is that of step 1\. "):
                save(tmp_path, 2)
        assert opened(tmp_path).steps() == [1]
    save(tmp_path, 2)
    assert names(tmp_path) == ["1", "2"]


def test_records_and_results_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    """A torn record is repaired when the run continues."""
    run, first = Workdir(tmp_path), {"step": 1, "split": "train", "loss": 1.0}
    long = {"step": 2, "split": "train"} | {f"number{index}": float(index) for index in range(400)}
    writer = MetricsWriter(run, step=0)
    writer.write(first)
    with files_of_at_most(KILOBYTE):
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(File too large\): free some space"):
            writer.write(long)
        with pytest.raises(UserError, match=r"result\.json cannot be written \(File too large\)"):
            write_json(run.result_file, long)
    assert run.records() == [first]
    MetricsWriter(run, step=1).write(long)
    assert run.records() == [first, long]
