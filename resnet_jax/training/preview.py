"""What the network sees: the very images of a training step, normalisation undone."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.data.streaming import Rows
from resnet_jax.training import feed, program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.step import Resident, augmentation_key


@dataclass(frozen=True)
class Shown:
    """Training images as a step has them."""

    images: Float[np.ndarray, "n h w c"]
    """0 to 1."""
    captions: list[str]
    """Class; of mixed images, the two with their shares."""


def shown(experiment: Experiment, info: DatasetInfo, *, seed: int = 0, step: int = 0, count: int = 32) -> Shown:
    """The first ``count`` images of a step's batch, cropped, augmented and mixed as in training, bit for bit.

    Args:
      experiment: checked against ``info``.
      info: of its data set.
      seed: of the run.
      step: steps done before.
      count: at most a batch.

    Raises:
      UserError: where images are damaged or missing.
    """
    images = feed.load(experiment, info)
    batches = program.batches_of(experiment, info.num_classes)
    key = jax.random.key(seed)
    if experiment.data.crop is None:
        read = sources.read(info, "train")
        kept = info.examples["train"] - experiment.data.validation_examples
        data = Resident(jnp.asarray(read.images[:kept]), jnp.asarray(read.labels[:kept]), images.preprocessing)
        given = data.chosen(data.order(key, jnp.int32(step), 1, experiment.batch_size)[0])
    else:
        stream = feed.stream(experiment, info, info.examples["train"] - experiment.data.validation_examples, seed)
        rows = Rows(stream, first_step=step, last_step=step + 1)
        # What is random about an image depends on the whole batch.
        found = [rows[number] for number in range(len(rows))]
        given = images.preprocessing, jnp.stack([row.images for row in found]), jnp.stack([row.labels for row in found])
    batch = jax.jit(batches)(augmentation_key(key, step), *given)
    preprocessing = images.preprocessing
    pixels = np.clip(np.asarray(batch.images[:count]) * preprocessing.deviation + preprocessing.mean, 0, 1)
    names = sources.class_names(info)
    if batch.targets is None:
        return Shown(pixels, [names[label] for label in np.asarray(batch.labels[:count])])
    return Shown(pixels, [_caption(target, names) for target in np.asarray(batch.targets[:count])])


def _caption(target: Float[np.ndarray, "classes"], names: list[str]) -> str:
    most = np.argsort(-target)[:2]
    return " + ".join(f"{target[label]:.2f} {names[label]}" for label in most if target[label] > 0)
