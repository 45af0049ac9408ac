"""Seconds of a whole recipe of a paper: training, compilation, and evaluation, each apart."""

import time
from collections.abc import Callable
from typing import Any

import jax

from resnet_jax.bench import rounds, workload
from resnet_jax.data.augmentation import fit
from resnet_jax.models import Architecture
from resnet_jax.training import program
from resnet_jax.training.experiment import Data, Experiment

# CIFAR-10's. What is in an image does not change how long it takes.
TRAINING, TEST = 45_000, 10_000


def measure(
    architecture: Architecture, *, steps: int, recipe_steps: int, batch_size: int, scores: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Trains ``steps`` steps of a recipe of ``recipe_steps`` on as many images as CIFAR-10 has, made up, and scores the test set twice.

    Returns seconds of compilation (to the end of the first call of each program), of the steps, of one evaluation; and of the whole recipe
    with ``scores`` evaluations: ``seconds``, which is ``extrapolated`` where fewer steps were run.
    """
    experiment = Experiment(name="recipe", model=architecture, data=Data(name=""), batch_size=batch_size)
    began = time.perf_counter()
    training, test = (workload.examples(architecture, count) for count in (TRAINING, TEST))
    made_at = time.perf_counter()
    made = program.compiled(experiment, 1)
    constants = fit(training.images, "channel")
    data = made.place(training, constants)
    states = made.stack([made.init(jax.random.key(0))])
    a_call = min(experiment.execution.steps_a_call(), steps)

    def train(states: Any) -> Any:
        states, metrics = made.train(states, data, a_call)
        return jax.block_until_ready((states, metrics))[0]

    def score(states: Any) -> float:
        begins = time.perf_counter()
        made.score(states, constants, test, TEST, experiment.evaluation.batch_size)
        return time.perf_counter() - begins

    states = train(states)
    first_score = score(states)
    compiled_at = time.perf_counter()
    say(f"ready after {compiled_at - made_at:.1f} s, {a_call} steps a call")
    calls = -(-steps // a_call)
    spent = []
    for _ in range(calls):
        begins = time.perf_counter()
        states = train(states)
        spent.append(time.perf_counter() - begins)
    evaluation = score(states)
    a_step = rounds.spread([seconds / a_call for seconds in spent])
    trained = calls * a_call
    training_seconds = sum(spent) * recipe_steps / trained
    return {
        "steps": trained,
        "recipe_steps": recipe_steps,
        "batch_size": batch_size,
        "steps_a_call": a_call,
        "preparing_seconds": made_at - began,
        # Without the work that the first calls do beside it.
        "compile_seconds": compiled_at - made_at - a_step["seconds"] * a_call - min(evaluation, first_score),
        "step_seconds": a_step["seconds"],
        "step_seconds_least": a_step["seconds_least"],
        "step_seconds_most": a_step["seconds_most"],
        "training_seconds": training_seconds,
        "evaluation_seconds": evaluation,
        "evaluations": scores,
        "seconds": training_seconds + scores * evaluation + (compiled_at - made_at),
        "extrapolated": trained < recipe_steps,
        "images_per_second": batch_size / a_step["seconds"],
    }
