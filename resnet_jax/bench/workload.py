"""The real training step of a network, with images made up: what every benchmark compiles or runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from resnet_jax.data.sources import Examples
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.execution import quick_to_run
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import state as state_lib
from resnet_jax.training import step as step_lib
from resnet_jax.training.experiment import Optimizer, Schedule
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Batch, Learning, Metrics


def examples(architecture: Architecture, count: int) -> Examples:
    """As many images as asked for, of the network's ``input_shape`` (uint8), with labels: made up. What is in them costs no time."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *architecture.input_shape), np.uint8)
    return Examples(images, random.integers(0, architecture.num_classes, count).astype(np.int32))


class Workload:
    """One network at one batch size under one execution.

    Args:
      architecture: the network; images have its ``input_shape``.
      batch_size: images a step.
      execution: how it is compiled.
    """

    def __init__(self, architecture: Architecture, batch_size: int, execution: Execution):
        self.architecture, self.batch_size = architecture, batch_size
        self._optimizer = optimizer_lib.make(Optimizer(), Schedule())

        def create(key: Array) -> Any:
            return state_lib.create(architecture, self._optimizer, key, execution)

        self._create = create
        self._apply, self.abstract_state = jax.eval_shape(create, jax.eval_shape(lambda: jax.random.key(0)))
        self.step = jax.jit(self._step, donate_argnums=0, compiler_options=quick_to_run())
        self.infer = jax.jit(self._infer, compiler_options=quick_to_run())

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step_lib.train_step(state, batch, Learning(self._apply, self._optimizer))

    def _infer(self, params: Any, batch_stats: Any, images: Array) -> Array:
        return self._apply(params, batch_stats, images, train=False)[0]

    def abstract_batch(self) -> Batch:
        """Shapes and dtypes of a batch."""
        images = jax.ShapeDtypeStruct((self.batch_size, *self.architecture.input_shape), jnp.float32)
        return Batch(images, jax.ShapeDtypeStruct((self.batch_size,), jnp.int32))  # pyright: ignore[reportArgumentType]

    def state(self) -> TrainState:
        """The state at step 0."""
        return jax.jit(lambda key: self._create(key)[1])(jax.random.key(0))

    def stepping(self) -> Callable[[], None]:
        """A step of training, to be called again and again; each waits until it is done."""
        state, batch = self.state(), self.batch()

        def run() -> None:
            nonlocal state
            state, metrics = self.step(state, batch)
            jax.block_until_ready(metrics)

        return run

    def batch(self) -> Batch:
        """Normal images, uniform labels."""
        key = jax.random.key(1)
        images = jax.random.normal(key, (self.batch_size, *self.architecture.input_shape))
        return Batch(images, jax.random.randint(key, (self.batch_size,), 0, self.architecture.num_classes))
