"""One of several processes of a run that saves and restores: PROCESS PROCESSES ADDRESS ROOT ACT+ACT... Prints results as JSON."""

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
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.training import step as step_lib
from resnet_jax.training.checkpoint import Checkpoints, SaveFailed
from resnet_jax.training.config import Checkpointing
from resnet_jax.training.run_dir import MetricsWriter, Workdir
from resnet_jax.training.step import TrainState

CONSTANTS = Preprocessing(np.arange(3, dtype=np.float32), np.ones(1, np.float32))
GROUPS = (1, 2, 4)
"""Processes that share four devices."""
LARGE = 20_000
"""Features of a state whose files exceed the limit of ``full``."""


def numbers(seed: int, size: int = 16) -> TrainState:
    """A state of plain numbers, the same in every process."""
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(3, 3, 8, size)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    momentum = {name: -value for name, value in params.items()}
    return TrainState(step=np.int32(seed), params=params, batch_stats={}, opt_state=(momentum,), key=key, ema={}, statistics={})


def shardings(tree: Any, parts: int) -> Any:
    """Whole on every device, or the first axis that divides cut into ``parts``."""
    over = jax.make_mesh((jax.device_count() // parts, parts), ("data", "fsdp"))

    def of_leaf(leaf: Any) -> NamedSharding:
        cut = next((axis for axis, size in enumerate(np.shape(leaf)) if parts > 1 and size % parts == 0 and len(leaf.shape) > 1), None)
        return NamedSharding(over, PartitionSpec(*(() if cut is None else (None,) * cut + ("fsdp",))))

    return jax.tree.map(of_leaf, tree)


def placed(seed: int, parts: int, size: int = 16) -> TrainState:
    plain = numbers(seed, size)
    arrays = jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index]),
        plain,
        shardings(plain, parts),
    )
    return step_lib.from_plain(arrays)


def like(parts: int, size: int = 16) -> tuple[TrainState, Preprocessing]:
    plain = numbers(0, size)
    shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=s), plain, shardings(plain, parts))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return shapes._replace(key=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shapes.key.sharding)), CONSTANTS


def digest(state: TrainState) -> str:
    plain = step_lib.plain(state)
    return step_lib.digest(jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), plain))


def opened(run: Path, said: list[str], **options: Any) -> Checkpoints:
    return Checkpoints(run / "checkpoints", Checkpointing(keep=options.pop("keep", 3)), say=said.append, **options)


def layouts(root: Path, said: list[str]) -> Any:
    """Saves in every layout, waits for the other groups, and restores all of theirs in every layout: digests by name."""
    for parts in (1, 2, 4):
        checkpoints = opened(root / f"{jax.process_count()}-{parts}", said)
        for step in (1, 2):
            checkpoints.save(step, placed(step, parts), CONSTANTS)
        checkpoints.close()
    distributed.wait("all are saved")
    if distributed.is_first():
        (root / f"{jax.process_count()}-saved").touch()
    until(lambda: all((root / f"{processes}-saved").exists() for processes in GROUPS))
    distributed.wait("all others are saved")
    found = {}
    for processes in GROUPS:
        for parts in (1, 2, 4):
            for wanted in (1, 2, 4):
                checkpoints = opened(root / f"{processes}-{parts}", said, read_only=True)
                restored = checkpoints.restore_newest(*like(wanted))
                checkpoints.close()
                assert restored is not None
                kernel = restored[1].params["kernel"]
                assert kernel.sharding.is_equivalent_to(shardings(numbers(0), wanted).params["kernel"], kernel.ndim)
                found[f"{processes}-{parts}-{wanted}"] = [restored[0], digest(restored[1])]
    return found


def corrupt(root: Path, said: list[str]) -> Any:
    """Corrupts the newest step, in its data and then in its manifest, restores, saves it again and restores that."""
    found = []
    for name in ("default/d/*", "manifest.json"):
        run = root / name.partition("/")[0]
        checkpoints = opened(run, said)
        for step in (1, 2, 3):
            checkpoints.save(step, placed(step, 2), CONSTANTS, error_percent=float(step))
        checkpoints.close()
        distributed.wait("saved")
        if distributed.is_first():
            largest = max((run / "checkpoints" / "3").glob(name), key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        distributed.wait("corrupted")
        checkpoints = opened(run, said)
        restored = checkpoints.restore_newest(*like(4))
        assert restored is not None
        steps = checkpoints.steps()
        checkpoints.save(3, placed(3, 1), CONSTANTS)
        again = checkpoints.restore_newest(*like(1))
        assert again is not None
        found.append([restored[0], digest(restored[1]), steps, again[0], digest(again[1]), checkpoints.steps()])
        checkpoints.close()
    return found


def full(root: Path, said: list[str]) -> Any:
    """Saves step 1, fails to save step 2 since no process can write, and saves it when they can."""
    checkpoints = opened(root, said, keep=1)
    checkpoints.save(1, placed(1, 4, LARGE), CONSTANTS)
    checkpoints.wait()
    distributed.wait("saved")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    checkpoints.save(2, placed(2, 4, LARGE), CONSTANTS)
    assert checkpoints._manager is not None
    until(lambda: not checkpoints._manager.is_saving_in_progress())
    distributed.wait("over")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = None
    try:
        checkpoints.check()
    except SaveFailed as error:
        message = str(error)
    checkpoints.close()
    distributed.wait("closed")
    checkpoints = opened(root, said, keep=1)
    checkpoints.save(2, placed(2, 4), CONSTANTS)
    checkpoints.close()
    distributed.wait("saved again")
    return [message, checkpoints.steps(), sorted(path.name for path in (root / "checkpoints").iterdir())]


def claim(root: Path, said: list[str]) -> Any:
    """A folder that one run has, and another process holds; a folder that is new."""
    experiment = components.load(f"{Path(__file__).parent}/tiny_experiment.py:tiny")()
    found = []
    for name, seed in {"mine": 1, "held": 1, "other": 2}.items():
        try:
            with Workdir(root / name).claimed(experiment, seed, say=said.append):
                writer = MetricsWriter(Workdir(root / name), step=0)
                writer.write({"step": 1, "split": "train", "loss": 0.5, "process": jax.process_index()})
                writer.close()
                distributed.wait("written")
                records = Workdir(root / name).records()
                found.append([records, len(list((root / name / "tensorboard").iterdir()))])
                distributed.wait("read")
        except UserError as error:
            found.append(str(error))
    return found


def until(done: Callable[[], bool]) -> None:
    """Polls, for ten minutes at most."""
    signal.alarm(600)
    while not done():
        time.sleep(0.05)
    signal.alarm(0)


def main(process: int, processes: int, address: str, root: str, act: str) -> None:
    if processes > 1:
        distributed.connect(distributed.Joining(coordinator=address, processes=processes, process=process))
    acts = {"layouts": layouts, "corrupt": corrupt, "full": full, "claim": claim}
    said: list[str] = []
    for name in act.split("+"):
        (Path(root) / name).mkdir(exist_ok=True)
    found = {name: acts[name](Path(root) / name, said) for name in act.split("+")}
    print(json.dumps({**found, "said": said}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
