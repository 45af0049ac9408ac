"""A program with the state of a single seed, without the axis of seeds."""

from typing import Any

import jax

from resnet_jax.evaluation.exact import Score
from resnet_jax.training import program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics, Resident


class OneSeed:
    """Wraps the program of an experiment."""

    def __init__(self, experiment: Experiment, devices: int | None = None):
        self.made = program.compiled(experiment, devices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)

    def train(self, state: TrainState, data: Resident, count: int) -> tuple[TrainState, Metrics]:
        states, metrics = self.made.train(self.made.stack([state]), data, count)
        return self.made.unstack(states)[0], jax.tree.map(lambda m: m[0], metrics)

    def settle(self, state: TrainState, data: Resident) -> TrainState:
        return self.made.unstack(self.made.settle(self.made.stack([state]), data))[0]

    def score(self, state: TrainState, *arguments: Any) -> Score:
        (score,) = self.made.score(self.made.stack([state]), *arguments)
        return score
