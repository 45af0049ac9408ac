"""A full disk is reported at once, and costs nothing that was saved before."""

import contextlib
import gc
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.failed_save import SaveFailed
from resnet_jax.training.state import TrainState, digest
from resnet_jax.training.workdir import MetricsWriter, Workdir

# Orbax leaves coroutines when it fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KILOBYTE = 1024
CONSTANTS = Preprocessing(np.zeros(1, np.float32), np.ones(1, np.float32))


@pytest.fixture(autouse=True)
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Here, and not in another test: what was logged holds them."""
    yield
    caplog.get_records("call").clear()
    gc.collect()


def state(step: int) -> TrainState:
    """800 kB that cannot be compressed."""
    params = {"kernel": jnp.asarray(np.random.default_rng(step).integers(0, 2**32, 200 * KILOBYTE, np.uint32))}
    return TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=(), key=jax.random.key(step), ema={}, statistics={})


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write behind it fails in this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def opened(run: Path, messages: list[str], **options: Any) -> Checkpoints:
    return Checkpoints(run / "checkpoints", say=messages.append, **{"keep": 3} | options)


def checked(checkpoints: Checkpoints, until: Callable[[], bool] = lambda: False) -> None:
    """As the loop does it, dispatch after dispatch; raises what it raises."""
    for _ in range(6000):
        checkpoints.check()
        if until():
            return
        time.sleep(0.01)
    pytest.fail("nothing was reported in a minute")


def assert_restores(run: Path, step: int) -> None:
    messages: list[str] = []
    checkpoints = opened(run, messages)
    found = checkpoints.restore_newest(*jax.eval_shape(lambda: (state(0), CONSTANTS)))
    checkpoints.close()
    assert found is not None
    assert (found[0], digest(found[1]), messages) == (step, digest(state(step)), [])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_failed_save_stops_the_run_at_once_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    """Without a word from anybody but ``check``; then there is room again, and the same step is saved."""
    checkpoints = opened(tmp_path, [], keep=1)
    checkpoints.save(1, state(1), CONSTANTS)
    checkpoints.wait()
    with files_of_at_most(300 * KILOBYTE):
        checkpoints.save(2, state(2), CONSTANTS)
        with pytest.raises(SaveFailed, match=r"step 2 could not be saved: .*; the newest is that of step 1\. To go on, ") as error:
            checked(checkpoints)
    assert isinstance(error.value, UserError)
    assert (error.value.step, error.value.last) == (2, 1)
    assert "File too large" in str(error.value.__cause__)
    assert checkpoints.steps() == [1]
    checkpoints.check()
    checkpoints.close()
    assert names(tmp_path) == ["1"]
    assert_restores(tmp_path, 1)
    again = opened(tmp_path, [], keep=1)
    again.save(2, state(2), CONSTANTS)
    again.close()
    assert names(tmp_path) == ["2"]
    assert_restores(tmp_path, 2)


def test_run_that_goes_on_says_and_counts_it_and_loses_nothing_else(tmp_path: Path) -> None:
    """Two saves fail; the last good one outlives them, and goes when there is a newer one."""
    messages: list[str] = []
    checkpoints = opened(tmp_path, messages, keep=1, failed_save="continue")
    checkpoints.save(1, state(1), CONSTANTS, 5.0)
    checkpoints.wait()
    with files_of_at_most(300 * KILOBYTE):
        for step in (2, 3):
            checkpoints.save(step, state(step), CONSTANTS, 1.0)
            checked(checkpoints, lambda count=step - 1: checkpoints.failed_saves == count)
            assert checkpoints.steps() == [1]
            assert names(tmp_path) == ["1"]
            assert checkpoints.best() == 1
    assert [message.split(" could ")[0] for message in messages] == ["the checkpoint of step 2", "the checkpoint of step 3"]
    assert all("goes on" in message and "step 1" in message for message in messages)
    checkpoints.save(4, state(4), CONSTANTS, 9.0)
    checkpoints.close()
    assert checkpoints.failed_saves == 2
    assert names(tmp_path) == ["4"]
    assert_restores(tmp_path, 4)


@pytest.mark.parametrize("call", ["save", "wait", "close"])
def test_failure_is_reported_by_whatever_is_called_next(tmp_path: Path, call: str) -> None:
    """A run that is not checking ends with it too; once."""
    checkpoints = opened(tmp_path, [])
    calls = {"save": lambda: checkpoints.save(2, state(2), CONSTANTS), "wait": checkpoints.wait, "close": checkpoints.close}
    with files_of_at_most(300 * KILOBYTE):
        checkpoints.save(1, state(1), CONSTANTS)
        with pytest.raises(SaveFailed, match=r"step 1 could not be saved: .*; there is none before it"):
            calls[call]()
    checkpoints.close()
    assert names(tmp_path) == []


def test_checking_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = opened(tmp_path, [])
    checkpoints.check()
    checkpoints.save(1, state(1), CONSTANTS)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "is_saving_in_progress", lambda: True)
        patched.setattr(checkpoints._manager, "wait_until_finished", lambda: pytest.fail("it waits"))
        checkpoints.check()
    checked(checkpoints, lambda: (tmp_path / "seals" / "1.json").exists())
    checkpoints.close()


@pytest.mark.parametrize("failed_save", ["stop", "continue"])
def test_save_that_cannot_begin_is_a_failed_save(tmp_path: Path, failed_save: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder cannot be made, say."""
    messages: list[str] = []
    checkpoints = opened(tmp_path, messages, failed_save=failed_save)
    checkpoints.save(1, state(1), CONSTANTS)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "save", full)
        expected = pytest.raises(SaveFailed) if failed_save == "stop" else contextlib.nullcontext()
        with expected as error:
            checkpoints.save(2, state(2), CONSTANTS)
    (message,) = messages if error is None else [str(error.value)]
    assert "step 2 could not be saved: the disk is full; the newest is that of step 1. " in message
    assert ("To go on, make room, and give the same command" in message) == (failed_save == "stop")
    checkpoints.save(3, state(3), CONSTANTS)
    checkpoints.close()
    assert names(tmp_path) == ["1", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system can be mounted by root only: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("failed_save", ["stop", "continue"])
def test_disk_that_fills_up(small_disk: Path, failed_save: str) -> None:
    """Two checkpoints fit, and a third does not; what was measured meanwhile is not lost where the run goes on."""
    run, messages = small_disk / "run", list[str]()
    run.mkdir()
    checkpoints = opened(run, messages, failed_save=failed_save)
    writer = MetricsWriter(Workdir(run), step=0, say=messages.append, failed_save=failed_save)
    for step in (1, 2):
        checkpoints.save(step, state(step), CONSTANTS)
        writer.write({"step": step, "split": "train", "loss": 1.0})
    checkpoints.save(3, state(3), CONSTANTS)
    if failed_save == "stop":
        with pytest.raises(SaveFailed, match=r"step 3 could not be saved: the disk is full; the newest is that of step 2\. "):
            checked(checkpoints)
    else:
        checked(checkpoints, lambda: checkpoints.failed_saves == 1)
        assert "step 3 could not be saved: the disk is full; the newest is that of step 2. " in messages[0]
    assert names(run) == ["1", "2"]

    (run / "filler").write_bytes(b"")
    with contextlib.suppress(OSError), (run / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(KILOBYTE))
    record = {"step": 4, "split": "train", "loss": 1.0, "note": 0.1**5}
    long = record | {f"number{index}": float(index) for index in range(400)}
    if failed_save == "stop":
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left on device\): make room, "):
            writer.write(long)
    else:
        writer.write(long)
        writer.write(record)
    assert len(Workdir(run).records()) == 2
    (run / "filler").unlink()
    writer.close()
    assert Workdir(run).records()[2:] == ([long] if failed_save == "stop" else [long, record])

    checkpoints.drop_after(1)  # makes room
    checkpoints.save(5, state(5), CONSTANTS)
    checkpoints.close()
    assert_restores(run, 5)
