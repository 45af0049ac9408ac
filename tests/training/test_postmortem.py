"""What a run that diverged says of itself, and that a run that was taken back goes on, to the same bits however often it is stopped."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Told

from resnet_jax.data import order
from resnet_jax.studies import run as run_lib
from resnet_jax.training import postmortem, program
from resnet_jax.training import seeds as seeds_lib
from resnet_jax.training.experiment import Experiment, Schedule
from resnet_jax.training.interruption import Interrupted
from resnet_jax.training.loop import NonFiniteLoss
from resnet_jax.training.program import Program
from resnet_jax.training.workdir import Workdir


@pytest.fixture(scope="module")
def diverging(tiny: Experiment) -> Experiment:
    """Its rate becomes infinite in all but name after 6 steps; the last checkpoint before is that of step 4."""
    return dataclasses.replace(tiny, schedule=Schedule(learning_rate=1e30, decay_steps=(), warmup_steps=6, warmup_learning_rate=0.01))


def test_the_postmortem_names_the_step_its_images_and_the_gradients(diverging: Experiment, digits_dir: str, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(NonFiniteLoss) as caught:
        run_lib.run(diverging, 5, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    found = json.loads((tmp_path / "run" / "postmortem.json").read_text())
    step = caught.value.step
    assert (found["step"], found["replayed_from"]) == (step, 4)
    assert found["loss"] in ("nan", "inf")
    assert found["learning_rate"] == pytest.approx(1e30)
    # The order of a run is a function of its key: He et al.'s sampling without replacement, by `order`.
    key = jax.random.fold_in(jax.random.key(5), 1)
    expected = order.batch_indices(key, jnp.int32(step - 1), steps=1, batch_size=64, examples=1437)
    assert found["examples"] == np.asarray(expected[0]).tolist()
    assert set(found["not_finite"]["gradients"]) <= set(found["gradient_norms"])
    assert found["not_finite"]["gradients"], "a loss that is no number has gradients that are none"
    assert any("postmortem.json" in message for message in told.messages)
    assert sum("is not finite" in message for message in told.messages) == 1


def test_norms_are_those_of_numpy(tiny: Experiment, digits_dir: str) -> None:
    """Of the parameters exactly; of the gradients, those that one step of plain gradient descent reveals."""
    plain = dataclasses.replace(tiny, optimizer=dataclasses.replace(tiny.optimizer, momentum=0.0, weight_decay=0.0), steps=1)
    made = program.compiled(plain, 1)
    from resnet_jax.data import sources
    from resnet_jax.training import feed

    images = feed.load(plain, sources.describe("digits", digits_dir))
    reading = images.feed(made, made.constants(images.preprocessing), 0)
    state = made.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state.params)
    states = made.stack([state])
    norms = jax.tree.map(lambda array: float(array[0]), jax.device_get(made.norms(states, reading.steps(0))))
    states, metrics = made.train(states, reading.steps(0), 1)
    rate = float(metrics.learning_rate[0, 0])
    after = jax.tree.map(lambda array: np.asarray(array[0]), states.params)
    for leaf, norm in zip(jax.tree.leaves(before), jax.tree.leaves(norms["parameters"]), strict=True):
        assert norm == pytest.approx(np.linalg.norm(leaf.astype(np.float64)), rel=1e-5)
    for old, new, norm in zip(*map(jax.tree.leaves, (before, after, norms["gradients"])), strict=True):
        assert norm == pytest.approx(np.linalg.norm((old.astype(np.float64) - new) / rate), rel=1e-2, abs=1e-4)


def test_in_words_the_parameters_come_first() -> None:
    found: dict[str, Any] = {"gradient_norm": 3.0, "parameter_norm": 4.0, "gradient_norms": {"stem": 1.0, "head": "nan"}}
    assert "largest gradient is of head" in postmortem.in_words(found | {"not_finite": {"parameters": []}})
    assert postmortem.in_words(found | {"not_finite": {"parameters": ["stem"]}}).endswith("before the step: stem")


@pytest.fixture
def poisoned_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the loss of step 7 infinite on the run's first batches, and on no others."""
    honest = program.compiled

    def compiled(*arguments: Any, **named: Any) -> Program:
        made = honest(*arguments, **named)

        def train(states: Any, data: Any, steps: int) -> Any:
            # What a test looks at may be fetched in between.
            with jax.transfer_guard("allow"):
                first = (jax.random.key_data(states.key)[:, 0] == 0).all() and int(states.step[0]) == 6
                states, metrics = made.train(states, data, steps)
                return states, metrics._replace(loss=metrics.loss * jnp.inf) if first else metrics

        return dataclasses.replace(made, train=train)

    return lambda: monkeypatch.setattr(seeds_lib.program_lib, "compiled", compiled)


@pytest.fixture(scope="module")
def going_back(tiny: Experiment) -> Experiment:
    return dataclasses.replace(tiny, checkpointing=dataclasses.replace(tiny.checkpointing, non_finite="roll_back"))


@pytest.mark.quick(1)
@pytest.mark.parametrize("stopped_after", [None, 5, 9])
def test_taken_back_it_goes_on_with_other_batches_and_resumes_to_the_same_bits(
    stopped_after: int | None, going_back: Experiment, poisoned_once: Callable[[], None], digits_dir: str, tmp_path: Path
) -> None:
    """``stopped_after``: of the second attempt, by SIGTERM, and continued."""

    class Stopping(Told):
        starts = 0

        def start(self, step: int, steps: int) -> None:
            super().start(step, steps)
            self.starts += 1

        def advance(self, step: int) -> None:
            if self.starts == 2 and step == stopped_after:
                os.kill(os.getpid(), signal.SIGTERM)

    poisoned_once()
    straight = run_lib.run(going_back, 1, tmp_path / "straight", progress=Told(), data_dir=digits_dir, devices=1)
    assert straight["protocol"]["rollbacks"] == 1
    told = Stopping()
    if stopped_after is None:
        found = run_lib.run(going_back, 1, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
        assert [message for message in told.messages if message.startswith("start")] == ["start 0/12", "start 4/12"]
    else:
        with pytest.raises(Interrupted):
            run_lib.run(going_back, 1, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
        found = run_lib.run(going_back, 1, tmp_path / "run", progress=Told(), data_dir=digits_dir, devices=1)
    assert found["state_digest"] == straight["state_digest"]
    back = [record for record in Workdir(tmp_path / "run").records() if record["split"] == "rollback"]
    assert back == [{"step": 4, "split": "rollback", "number": 1, "non_finite_step": 7}]


def test_what_does_not_help_is_given_up_after_three_times(diverging: Experiment, digits_dir: str, tmp_path: Path) -> None:
    experiment = dataclasses.replace(diverging, checkpointing=dataclasses.replace(diverging.checkpointing, non_finite="roll_back"))
    told = Told()
    with pytest.raises(NonFiniteLoss):
        run_lib.run(experiment, 5, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert sum("on with other batches" in message for message in told.messages) == 3
    # From the same checkpoint a second time there is none: it goes back further.
    assert [message for message in told.messages if message.startswith("start")] == ["start 0/12", "start 4/12", "start 0/12", "start 4/12"]
    assert (tmp_path / "run" / "diverged.json").is_file()
