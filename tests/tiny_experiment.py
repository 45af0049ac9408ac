"""Experiments of the tests: they run in seconds on `digits`."""

import jax.numpy as jnp
from flax import nnx
from resnet_jax.models import cifar_architecture
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Schedule


def tiny() -> Experiment:
    """Eight layers, twelve steps."""
    return Experiment(
        name="tiny",
        model=cifar_architecture(8, input_shape=(8, 8, 1), features=(4, 8, 8)),
        data=Data(name="digits", pad=1, flip=False),
        schedule=Schedule(learning_rate=0.05, decay_steps=(6, 9), warmup_steps=2),
        steps=12,
        batch_size=64,
        evaluation=Evaluation(every=6, batch_size=72),
        checkpointing=Checkpointing(every=4),
    )


def pair() -> list[Experiment]:
    """A study of two variants."""
    plain = cifar_architecture(8, input_shape=(8, 8, 1), features=(4, 4, 4), shortcut=Half)
    return [tiny(), Experiment(name="half", model=plain, data=Data(name="digits"), steps=4, evaluation=Evaluation(batch_size=72))]


class Half(nnx.Module):
    """A user's own shortcut: half of x, cut or padded to the branch's shape."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.stride, self.missing = stride, out_features - in_features

    def __call__(self, x, branch):
        x = x[:, :: self.stride, :: self.stride]
        return branch + 0.5 * jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing)))
