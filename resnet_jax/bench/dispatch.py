"""What the host spends on a step: the time that a call takes before it returns, by the number of steps that it runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.bench import rounds, workload
from resnet_jax.data.augmentation import fit
from resnet_jax.models import Architecture
from resnet_jax.training import program
from resnet_jax.training.experiment import Data, Experiment

IMAGES = 256


class Recompiled(RuntimeError):
    """Something was compiled where nothing should be."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing may be compiled, and nothing moved between host and device unless it is asked for.

    Raises:
      Recompiled: at its end, where a program was compiled.
      RuntimeError: jax's, at the transfer.
    """
    compiled: list[str] = []

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if "backend_compile" in event:
            compiled.append(f"{event} ({duration_secs:.2f} s)")

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        with jax.transfer_guard("disallow"):
            yield
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    if compiled:
        raise Recompiled(f"{len(compiled)} programs were compiled in the loop: {compiled[0]}")


def measure(architecture: Architecture, steps: Sequence[int], *, batch_size: int, count: int) -> list[dict[str, Any]]:
    """Host seconds of a call, and of a step, for 1, 10, ... steps in a call, interleaved; whole seconds beside them.

    Nothing is compiled or moved meanwhile (see ``quiet``). What the host does depends on the arrays of the state, not on the images: give
    few, small ones where only that is asked for.
    """
    examples = workload.examples(architecture, IMAGES)
    experiment = Experiment(name="dispatch", model=architecture, data=Data(name=""), batch_size=batch_size)
    made = program.compiled(experiment, 1)
    data = made.place(examples, fit(examples.images, "channel"))
    states = [made.stack([made.init(jax.random.key(0))])]
    leaves = jax.tree.leaves(states[0])
    host: dict[int, list[float]] = {number: [] for number in steps}

    def call(number: int) -> Callable[[], None]:
        def run() -> None:
            jax.block_until_ready(states[0])
            began = time.perf_counter()
            states[0], metrics = made.train(states[0], data, number)
            host[number].append(time.perf_counter() - began)
            jax.block_until_ready(metrics)

        return run

    calls = [call(number) for number in steps]
    rounds.interleaved(calls, 1, warm=1, settling=0)
    for spent in host.values():
        spent.clear()
    with quiet():
        whole = rounds.interleaved(calls, count, warm=0, settling=0)
    return [
        {
            "steps": number,
            "batch_size": batch_size,
            "arrays": len(leaves),
            "state_bytes": sum(leaf.nbytes for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)),
            "rounds": count,
            **{f"host_{name}": value for name, value in rounds.spread(host[number]).items() if name != "rounds"},
            "host_seconds_a_step": rounds.spread(host[number])["seconds"] / number,
            "seconds_a_step": rounds.spread(spent)["seconds"] / number,
        }
        for number, spent in zip(steps, whole, strict=True)
    ]
