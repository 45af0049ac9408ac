"""Images of a training step, without the normalization."""

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
    """Images of a training step."""

    images: Float[np.ndarray, "n h w c"]
    """Values 0 to 1."""
    captions: list[str]
    """Class names; of mixed images with their shares."""


def shown(experiment: Experiment, info: DatasetInfo, *, seed: int = 0, step: int = 0, count: int = 32) -> Shown:
    """Returns the first ``count`` images of the batch after ``step`` steps, augmented as in training."""
    preprocessing, key = feed.constants(experiment, info), jax.random.key(seed)
    if experiment.data.crop is None:
        examples = feed.training_set(experiment, info)
        chosen = Resident(examples.images, examples.labels, preprocessing).order(key, jnp.int32(step), 1, experiment.batch_size)[0]  # pyright: ignore[reportArgumentType]
        images, labels = examples.images[chosen], examples.labels[chosen]
    else:
        # The randomness of an image depends on the whole batch.
        stream = Rows(feed.stream(experiment, info, seed), first_step=step, last_step=step + 1)
        images, labels, _ = (np.stack(values) for values in zip(*(stream[i] for i in range(len(stream))), strict=True))
    batches = program.batches_of(experiment, info.num_classes)
    batch = jax.jit(batches)(augmentation_key(key, step), preprocessing, jnp.asarray(images), jnp.asarray(labels))
    pixels = np.clip(np.asarray(batch.images[:count]) * preprocessing.deviation + preprocessing.mean, 0, 1)
    names = sources.class_names(info)
    if batch.targets is None:
        return Shown(pixels, [names[label] for label in np.asarray(batch.labels[:count])])
    targets = np.asarray(batch.targets[:count])
    largest = np.argsort(-targets)[:, :2]
    shares = [[f"{row[label]:.2f} {names[label]}" for label in two if row[label] > 0] for row, two in zip(targets, largest, strict=True)]
    return Shown(pixels, [" + ".join(parts) for parts in shares])
