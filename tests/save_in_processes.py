"""One of several processes of a run that saves and restores: PROCESS PROCESSES ADDRESS ROOT ACT+ACT... Prints results as JSON."""

import contextlib
import dataclasses
import itertools
import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.training import sharding
from resnet_jax.training.checkpoint import Checkpoints, SaveFailed
from resnet_jax.training.config import Checkpointing, Experiment
from resnet_jax.training.step import TrainState, digest

from tiny_experiment import tiny

CONSTANTS = Preprocessing(np.zeros((8, 8, 1), np.float32), np.ones(1, np.float32))
TINY = tiny()
WIDE = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, features=(64, 64, 64)))
"""Its files exceed the limit of ``full``."""
GROUPS = PARTS = (1, 2, 4)
"""Processes that share four devices; parts of split parameters."""


def drawn(step: int, parts: int, experiment: Experiment = TINY) -> TrainState:
    """The initial state of a seed, its parameters on every device or split into ``parts``."""
    return sharding.compiled(experiment, fsdp=parts).init(jax.random.key(step))


def restored(checkpoints: Checkpoints, parts: int) -> tuple[int, str]:
    """Step and digest of the newest intact checkpoint."""
    program = sharding.compiled(TINY, fsdp=parts)
    shapes = program.abstract_state
    found = checkpoints.restore_newest(shapes, program.put(CONSTANTS))
    assert found is not None
    for leaf, expected in zip(jax.tree.leaves(found[1]), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    return found[0], digest(found[1])


def opened(run: Path, said: list[str], **options: Any) -> Checkpoints:
    return Checkpoints(run / "checkpoints", Checkpointing(keep=options.pop("keep", 3)), say=said.append, **options)


def layouts(root: Path, said: list[str]) -> Any:
    """Saves in every layout, waits for the other groups, and restores all of theirs in every layout: digests by name."""
    for parts in PARTS:
        with contextlib.closing(opened(root / f"{jax.process_count()}-{parts}", said)) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, drawn(step, parts), CONSTANTS)
    distributed.wait("all are saved")
    if distributed.is_first():
        (root / f"{jax.process_count()}-saved").touch()
    until(lambda: all((root / f"{processes}-saved").exists() for processes in GROUPS))
    distributed.wait("all others are saved")
    found = {}
    for processes, parts, wanted in itertools.product(GROUPS, PARTS, PARTS):
        with contextlib.closing(opened(root / f"{processes}-{parts}", said, read_only=True)) as checkpoints:
            found[f"{processes}-{parts}-{wanted}"] = restored(checkpoints, wanted)
    return found


def corrupt(root: Path, said: list[str]) -> Any:
    """Corrupts the newest step, in its data and then in its manifest, restores, saves it again and restores that."""
    found = []
    for name in ("default/d/*", "manifest.json"):
        run = root / name.partition("/")[0]
        with contextlib.closing(opened(run, said)) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, drawn(step, 2), CONSTANTS, error_percent=float(step))
        distributed.wait("saved")
        if distributed.is_first():
            largest = max((run / "checkpoints" / "3").glob(name), key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        distributed.wait("corrupted")
        with contextlib.closing(opened(run, said)) as checkpoints:
            before, steps = restored(checkpoints, 4), checkpoints.steps()
            checkpoints.save(3, drawn(3, 1), CONSTANTS)
            found.append([*before, steps, restored(checkpoints, 1)[0], checkpoints.steps()])
    return found


def full(root: Path, said: list[str]) -> Any:
    """Saves step 1, fails to save step 2 since no process can write, and saves it when they can."""
    checkpoints = opened(root, said, keep=1)
    checkpoints.save(1, drawn(1, 4, WIDE), CONSTANTS)
    checkpoints.wait()
    state = drawn(2, 4, WIDE)
    distributed.wait("saved")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    checkpoints.save(2, state, CONSTANTS)
    manager = checkpoints._manager
    assert manager is not None
    until(lambda: not manager.is_saving_in_progress())
    distributed.wait("over")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = ""
    try:
        checkpoints.check()
    except SaveFailed as error:
        message = str(error)
    checkpoints.close()
    distributed.wait("closed")
    with contextlib.closing(opened(root, said, keep=1)) as checkpoints:
        checkpoints.save(2, state, CONSTANTS)
    distributed.wait("saved again")
    return [message, checkpoints.steps(), sorted(path.name for path in (root / "checkpoints").iterdir())]


def until(done: Callable[[], bool]) -> None:
    """Polls, for ten minutes at most."""
    signal.alarm(600)
    while not done():
        time.sleep(0.05)
    signal.alarm(0)


def main(process: int, processes: int, address: str, root: str, act: str) -> None:
    if processes > 1:
        distributed.connect(distributed.Joining(coordinator=address, processes=processes, process=process))
    acts = {"layouts": layouts, "corrupt": corrupt, "full": full}
    said: list[str] = []
    for name in act.split("+"):
        (Path(root) / name).mkdir(exist_ok=True)
    found = {name: acts[name](Path(root) / name, said) for name in act.split("+")}
    print(json.dumps({**found, "said": said}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
