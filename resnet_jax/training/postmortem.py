"""What a run that diverged leaves behind: the step, its images, and the gradients that were too much."""

import math
from typing import Any

import jax
import numpy as np

from resnet_jax.training.feed import Feed
from resnet_jax.training.interruption import StopRequest
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState


def examine(program: Program, feed: Feed, begun: tuple[int, TrainState], step: int, asked: StopRequest) -> dict[str, Any] | None:
    """Trains a run again up to the step whose loss was not finite, and looks at it there.

    A run is a function of its experiment and seed, so its last checkpoint leads there again; to rounding, where it was trained together
    with other seeds.

    Args:
      program: of one seed.
      feed: its images.
      begun: steps done and state of its last checkpoint, or of its beginning.
      step: the one whose loss was not finite, counted from 1.
      asked: to stop.

    Returns:
      What ``postmortem.json`` holds: the step and its loss, its images by their number in the training split, Euclidean norms of gradients
      and parameters, of all together and of each array; what is not finite as text. None where it was asked to stop meanwhile.
    """
    first, state = begun
    examples = feed.examples(state.key, step - 1)
    states = program.stack([state])
    for done in range(first, step - 1):
        if asked.heard() is not None:
            return None
        states, _ = program.train(states, feed.steps(done), 1)
    data = feed.steps(step - 1)
    found = jax.tree.map(lambda array: float(np.asarray(array)[0]), program.norms(states, data))
    _, metrics = program.train(states, data, 1)
    gradients, parameters = (_named(found[name]) for name in ("gradients", "parameters"))
    return {
        "step": step,
        "replayed_from": first,
        "loss": _said(float(np.asarray(metrics.loss)[0, 0]) / len(examples)),
        "learning_rate": float(np.asarray(metrics.learning_rate)[0, 0]),
        "gradient_norm": _said(math.hypot(*gradients.values())),
        "parameter_norm": _said(math.hypot(*parameters.values())),
        "not_finite": {
            what: [name for name, norm in norms.items() if not math.isfinite(norm)]
            for what, norms in (("gradients", gradients), ("parameters", parameters))
        },
        "gradient_norms": {name: _said(norm) for name, norm in gradients.items()},
        "parameter_norms": {name: _said(norm) for name, norm in parameters.items()},
        "examples": examples,
    }


def in_words(found: dict[str, Any]) -> str:
    """The first thing to know of it."""
    if found["not_finite"]["parameters"]:
        return f"parameters were not finite before the step: {found['not_finite']['parameters'][0]}"
    largest = max(found["gradient_norms"], key=lambda name: _size(found["gradient_norms"][name]))
    norms = f"norm of the gradient {found['gradient_norm']}, of the parameters {found['parameter_norm']}"
    return f"{norms}; the largest gradient is of {largest}"


def _named(tree: Any) -> dict[str, float]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): value for path, value in jax.tree.leaves_with_path(tree)}


def _said(number: float) -> float | str:
    # JSON knows neither infinity nor what is no number.
    return float(f"{number:.6g}") if math.isfinite(number) else str(number)


def _size(said: float | str) -> float:
    return said if isinstance(said, float) else math.inf
