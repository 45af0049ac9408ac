"""Scoring the newest checkpoint of a run."""

from pathlib import Path
from typing import Any

import jax

from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.studies import result
from resnet_jax.training import mesh
from resnet_jax.training import program as program_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.workdir import Workdir


def score_run(run: Path, *, data: str | None, split: str | None, batch_size: int, data_dir: str | None) -> dict[str, Any]:
    """Returns ``error_percent``, ``mean_loss``, ``examples``, ``split``, ``step`` and ``protocol`` of a run's newest whole checkpoint.

    The images are normalised with the constants stored in the checkpoint.

    Raises:
      UserError: where there is no run or checkpoint, or the images do not fit the network.
    """
    workdir = Workdir(run)
    experiment, _ = workdir.experiment()
    info = sources.describe(data or experiment.data.name, data_dir)
    split = split or experiment.data.test_split
    _check(experiment, info, split, batch_size)
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    program = program_lib.compiled(experiment)
    checkpoints = Checkpoints(workdir.checkpoints, keep=experiment.checkpointing.keep, say=print)
    restored = checkpoints.restore_newest(program.abstract_state, program_lib.abstract_preprocessing(experiment))
    checkpoints.close()
    if restored is None:
        raise UserError(f"{run} has no whole checkpoint")
    step, state, preprocessing = restored
    score = exact.evaluate(
        program.apply,
        *state.scored(),
        preprocessing,
        sources.read(info, split),
        batch_size=batch_size,
        expected_examples=info.examples[split],
        sharding=mesh.batch(program.mesh),
    )
    protocol = result.protocol(experiment, info) | {"test_images": score.examples}
    return {
        "error_percent": score.error_percent,
        "mean_loss": score.mean_loss,
        "examples": score.examples,
        "split": split,
        "step": step,
        "protocol": protocol,
    }


def _check(experiment: Experiment, info: sources.DatasetInfo, split: str, batch_size: int) -> None:
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {', '.join(sorted(info.examples))}")
    if batch_size < 1 or batch_size % jax.device_count():
        raise UserError(f"--batch-size is {batch_size}; use a positive multiple of the {jax.device_count()} devices")
    model = experiment.model
    if (info.image_shape, info.num_classes) != (model.input_shape, model.num_classes):
        raise UserError(
            f"{info.name} has images of {info.image_shape} in {info.num_classes} classes; the run was trained on {model.input_shape} "
            f"in {model.num_classes}"
        )
