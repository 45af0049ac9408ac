"""Weights of runs, runs that start from weights, and frozen parameters."""

import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.models import Architecture, norms
from resnet_jax.models.components import component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.training import config, fine_tune, sharding
from resnet_jax.training.config import Evaluation, Experiment, Optimizer
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.step import Batch
from resnet_jax.training.train import train
from resnet_jax.weights import Card, Pretrained, View, load_pretrained, saving

from conftest import Told


def same(ours: Any, theirs: Any) -> None:
    """Bit for bit, and nothing more on either side."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_newest_checkpoint_has_weights_and_card(short: Experiment, short_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fine_tune.restore(short_run)
    assert (found.step, found.experiment) == (4, short)
    monkeypatch.chdir(short_run)
    weights = fine_tune.weights_of(Path())
    card = weights.card
    assert (card.architecture, card.data, card.source) == (short.model, "digits", "run, step 4")
    # torch counts a batch for every step; all normalizations have the same number.
    assert card.counters == {"": 4.0}
    assert (card.convention, card.claimed_error, card.view.resize, card.view.crop) == ("", None, 0, 0)
    same(tuple(card.constants()), tuple(found.preprocessing))
    same((weights.params, weights.batch_stats), found.state.scored())


def test_missing_run_and_missing_checkpoint_are_errors(short: Experiment, short_run: Path, tmp_path: Path) -> None:
    """A foreign file is rejected with the import command."""
    with pytest.raises(UserError, match="is not a run: it has no experiment.json"):
        fine_tune.weights_of(tmp_path)
    Workdir(tmp_path / "begun").claim(short, 0)
    with pytest.raises(UserError, match="begun has no checkpoint yet"):
        fine_tune.restore(tmp_path / "begun")
    (tmp_path / "begun" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="begun has no intact checkpoint"):
        fine_tune.restore(tmp_path / "begun")
    file = tmp_path / "torch.safetensors"
    saving.export(fine_tune.weights_of(short_run), "torchvision", file)
    with pytest.raises(UserError, match=rf"torchvision.*resnet-jax weights import {file} --as NAMES --to"):
        fine_tune.weights_of(file)


def test_corruption_is_reported_on_stderr(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout may be read as JSON."""
    shutil.copytree(short_run, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).write_bytes(b"")
    assert fine_tune.restore(tmp_path / "run").step == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "checkpoint of step 4 is corrupt" in err


def test_kept_steps_and_the_initialization_are_restored(short_run: Path, file: Path) -> None:
    found = fine_tune.restore(short_run, 2)
    assert (found.step, int(found.state.step)) == (2, 2)
    begun = fine_tune.restore(short_run, 0)
    same(begun.state.params, begun.program.init(jax.random.key(3)).params)
    same(tuple(begun.preprocessing), tuple(found.preprocessing))
    assert fine_tune.weights_of(short_run, 0).card.source == "run, step 0"
    with pytest.raises(UserError, match="run has no step 3, but 0, 2, 4"):
        fine_tune.restore(short_run, 3)
    with pytest.raises(UserError, match="is not a run"):
        fine_tune.weights_of(file, 2)


GREY = View(mean=(0.3,), deviation=(0.4,))


@pytest.fixture(scope="module")
def file(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights in a file."""
    return saving.save(fine_tune.weights_of(short_run), tmp_path_factory.mktemp("file") / "weights.safetensors")


def run(experiment: Experiment, folder: Path, digits_dir: str, seed: int = 3, told: Told | None = None) -> dict[str, Any]:
    return train(experiment, seed, folder, callbacks=[told or Told()], data_dir=digits_dir, devices=1)


def drawn(model: Architecture, view: View = GREY) -> Pretrained:
    """An untrained network, its statistics other than they begin."""
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(1))
    moved = jax.tree.map(lambda a: np.asarray(a) * 0.9 + 0.05, batch_stats)
    return Pretrained(Card(architecture=model, view=view, source="drawn"), params, moved)


def differs(ours: Any, theirs: Any) -> bool:
    return all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def test_run_file_and_torch_export_have_one_digest(short: Experiment, short_run: Path, file: Path, tmp_path: Path) -> None:
    """It includes the normalization constants, which a file in torchvision's format also has."""
    weights, folder = fine_tune.weights_of(short_run), tmp_path / "folder"
    saving.save(weights, folder)
    saving.export(weights, "torchvision", tmp_path / "torch.safetensors")
    back = saving.save(load_pretrained(tmp_path / "torch.safetensors", "torchvision"), tmp_path / "back.safetensors")
    begun = [fine_tune.start_from(short, each) for each in (short_run, file, folder, back)]
    assert {each.start.digest for each in begun} == {fine_tune.digest(weights)}
    assert len({config.fingerprint(config.identity(each, 3)) for each in begun}) == 1
    assert begun[0].data.normalization == "weights"
    other = replace(weights, card=replace(weights.card, view=replace(weights.card.view, deviation=(0.5,))))
    assert fine_tune.digest(other) != fine_tune.digest(weights)


def test_parameters_and_averages_start_with_the_weights(short: Experiment, file: Path) -> None:
    """A new head is the seed's."""
    weights = load_pretrained(file)
    averaging = replace(short, optimizer=Optimizer(rule="prodigy", ema=0.9), evaluation=Evaluation(batch_size=72, statistics_batches=2))
    experiment = fine_tune.start_from(averaging, file)
    init = sharding.compiled(experiment, 1).init
    state = fine_tune.initial_state(init(jax.random.key(0)), experiment, weights)
    for params in (state.params, state.ema, optax.tree_utils.tree_get(state.opt_state, "params0")):
        same(params, weights.params)
    for statistics in (state.batch_stats, state.statistics):
        same(statistics, weights.batch_stats)
    # The first step donates the state's arrays: none may be those of another, or of the weights.
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state._replace(key=()))]
    given = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((weights.params, weights.batch_stats)) if isinstance(leaf, jax.Array)]
    assert len({*places, *given}) == len(places) + len(given)
    experiment = fine_tune.start_from(averaging, file, new_head=True)
    fresh = init(jax.random.key(4)).params["head"]
    state = fine_tune.initial_state(init(jax.random.key(4)), experiment, weights)
    same(state.params, weights.params | {"head": fresh})
    assert differs(state.params["head"]["linear"]["kernel"], weights.params["head"]["linear"]["kernel"])


@pytest.mark.slow
def test_frozen_trunk_stays_bit_for_bit_and_can_be_thawed(short: Experiment, short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    """Parameters and statistics; the classifier learns. A run that goes on from there trains all of it."""
    weights = fine_tune.weights_of(short_run)
    experiment = fine_tune.start_from(short, short_run, freeze_trunk=True)
    result = run(experiment, tmp_path / "frozen", digits_dir)
    assert result["protocol"]["normalization"] == "FrozenBatchNorm"
    restored = fine_tune.restore(tmp_path / "frozen")
    same(tuple(restored.preprocessing), tuple(weights.card.constants()))
    with pytest.raises(UserError, match=f"starts from {short_run}"):
        fine_tune.restore(tmp_path / "frozen", 0)
    found = restored.state
    params, batch_stats = norms.freeze(weights.params, weights.batch_stats)
    same((found.params | {"head": {}}, found.batch_stats), (params | {"head": {}}, batch_stats))
    assert differs(found.params["head"], params["head"])
    # Frozen once more, and thawed.
    again = fine_tune.start_from(short, tmp_path / "frozen", freeze_trunk=True)
    assert again.model.norm is FrozenBatchNorm
    thawed = fine_tune.start_from(short, tmp_path / "frozen")
    state = fine_tune.initial_state(sharding.compiled(thawed, 1).init(jax.random.key(0)), thawed, fine_tune.weights_of(tmp_path / "frozen"))
    same((state.params | {"head": {}}, state.batch_stats), (weights.params | {"head": {}}, weights.batch_stats))
    same(state.params["head"], found.params["head"])


@pytest.mark.slow
def test_frozen_trunk_includes_the_normalization_before_the_classifier(short: Experiment, tmp_path: Path) -> None:
    """With BatchNorm frozen, and with GroupNorm whose parameters are."""
    for norm in (component(BatchNorm, epsilon=1e-3, momentum=0.8), component(GroupNorm, num_groups=2)):
        weights = drawn(replace(short.model, order=FullPreactivation, norm=norm))
        file = saving.save(weights, tmp_path / "weights.safetensors")
        experiment = fine_tune.start_from(replace(short, model=weights.architecture), file, freeze_trunk=True)
        assert experiment.model.norm == (norm if parts(norm)[0] is GroupNorm else component(FrozenBatchNorm, epsilon=1e-3))
        made = sharding.compiled(experiment, 1)
        begun = fine_tune.initial_state(made.init(jax.random.key(3)), experiment, weights)
        before = jax.tree.map(np.asarray, (begun.params, begun.batch_stats))
        data = Batch(np.full((64, 8, 8, 1), 7, np.uint8), np.arange(64, dtype=np.int32) % 10)
        constants = Preprocessing(np.zeros((8, 8, 1), np.float32), np.ones(1, np.float32))
        after, _ = made.train(begun, *made.put((data, constants)), 1)
        trunk, start_of_trunk = jax.device_get(after.params), before[0]
        assert differs(trunk["head"].pop("linear"), start_of_trunk["head"].pop("linear"))
        same(trunk, start_of_trunk)
        same(after.batch_stats, before[1])


@pytest.mark.slow
def test_stopped_run_ends_in_the_same_bits(short: Experiment, short_run: Path, file: Path, digits_dir: str, tmp_path: Path) -> None:
    """Continued with the same weights out of another file."""
    experiment = fine_tune.start_from(short, short_run, new_head=True)
    straight = run(experiment, tmp_path / "straight", digits_dir)

    class Terminated(Told):
        def step(self, step: int, metrics: object) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "stopped", digits_dir, told=Terminated())
    told = Told()
    continued = run(fine_tune.start_from(short, file, new_head=True), tmp_path / "stopped", digits_dir, told=told)
    assert any(message.startswith("continuing after step ") for message in told.messages)
    assert continued["state_digest"] == straight["state_digest"]
    assert continued["protocol"]["initial_weights"] == experiment.start.digest
    assert run(short, tmp_path / "drawn", digits_dir)["state_digest"] != straight["state_digest"]
    # Other weights do not continue it.
    saving.save(drawn(short.model), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"holds another run.*\n.*start\.digest: '[0-9a-f]{64}' asked for, '[0-9a-f]{64}' in the run"):
        run(fine_tune.start_from(short, tmp_path / "other.safetensors", new_head=True), tmp_path / "stopped", digits_dir)


def test_changed_or_missing_weights_are_rejected_before_anything_is_written(
    short: Experiment, file: Path, digits_dir: str, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    shutil.copy(file, mine)
    experiment = fine_tune.start_from(short, mine)
    mine.unlink()
    saving.save(drawn(short.model, View(mean=(0.2,), deviation=(1.0,))), mine)
    with pytest.raises(UserError, match=r"mine\.safetensors holds other weights than the experiment: use --init-from"):
        run(experiment, tmp_path / "run", digits_dir)
    mine.unlink()
    with pytest.raises(UserError, match=r"there is neither a run nor a file of weights at .*mine\.safetensors"):
        run(experiment, tmp_path / "run", digits_dir)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_rejected_with_the_options_that_fit(short: Experiment, file: Path, tmp_path: Path) -> None:
    norm = component(BatchNorm, epsilon=1e-3)
    theirs = saving.save(drawn(replace(short.model, stages=(1, 2, 1), norm=norm)), tmp_path / "weights.safetensors")
    for weights, fields, message in (
        (theirs, {}, "another network. Use --model.stages 1 2 1 --model.norm 'BatchNorm(epsilon=0.001)'"),
        (file, {"num_classes": 5}, "the weights have 10 classes, not 5: use --new-head"),
        (file, {"input_shape": (8, 8, 3)}, "the weights take images of 1 channels, got 3"),
        (file, {"input_shape": (12, 12, 1)}, "the mean image has the shape (8, 8, 1): use --data.normalization channel"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            fine_tune.start_from(replace(short, model=replace(short.model, **fields)), weights)
    # What only matters while training is the experiment's own.
    momentum = component(BatchNorm, epsilon=1e-3, momentum=0.5)
    fitting = replace(short, model=replace(short.model, stages=(1, 2, 1), norm=momentum))
    assert fine_tune.start_from(fitting, theirs).start.file == str(theirs)
    five = fine_tune.start_from(replace(short, model=replace(short.model, num_classes=5)), file, new_head=True)
    state = fine_tune.initial_state(sharding.compiled(five, 1).init(jax.random.key(0)), five, load_pretrained(file))
    assert state.params["head"]["linear"]["kernel"].shape == (8, 5)
    large = replace(short, model=replace(short.model, input_shape=(12, 12, 1)))
    experiment = fine_tune.start_from(large, file, normalization="channel")
    assert experiment.data.normalization == "channel"
    assert fine_tune.preprocessing(experiment, load_pretrained(file)) is None
