"""Restored states of a run, and its weights as they are evaluated, with the normalization constants."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from resnet_jax.errors import UserError
from resnet_jax.training import fine_tune
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.train import train
from resnet_jax.weights import load_pretrained, saving

from conftest import Told


def test_newest_checkpoint_has_weights_and_card(short: Experiment, short_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fine_tune.restore(short_run)
    assert (found.step, found.experiment) == (4, short)
    weights = fine_tune.weights_of(short_run)
    card = weights.card
    assert (card.architecture, card.data, card.source) == (short.model, "digits", "run, step 4")
    # torch counts a batch for every step; all normalizations have the same number.
    assert card.counters == {"": 4.0}
    assert (card.convention, card.claimed_error, card.view.resize, card.view.crop) == ("", None, 0, 0)
    for ours, theirs in zip(card.constants(), found.preprocessing, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, (weights.params, weights.batch_stats), jax.device_get(found.state.scored()))
    monkeypatch.chdir(short_run)
    assert fine_tune.weights_of(Path()).card.source == "run, step 4"


def test_counters_are_exported_to_torch(short_run: Path, tmp_path: Path) -> None:
    """``num_batches_tracked`` of every normalization is the number of steps."""
    saving.export(fine_tune.weights_of(short_run), "torchvision", tmp_path / "torch.safetensors")
    counters = load_pretrained(tmp_path / "torch.safetensors", "torchvision").card.counters
    assert len(counters) == 1 + 3 * 2 + 2  # the stem's, two a unit, two projections'
    assert set(counters.values()) == {4.0}


def test_missing_run_and_missing_checkpoint_are_errors(short: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: it has no experiment.json"):
        fine_tune.weights_of(tmp_path)
    Workdir(tmp_path / "begun").claim(short, 0)
    with pytest.raises(UserError, match="begun has no checkpoint yet"):
        fine_tune.restore(tmp_path / "begun")
    (tmp_path / "begun" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="begun has no intact checkpoint"):
        fine_tune.restore(tmp_path / "begun")


def test_corruption_is_reported_on_stderr(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout may be read as JSON."""
    shutil.copytree(short_run, tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).write_bytes(b"")
    assert fine_tune.restore(tmp_path / "run").step == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "checkpoint of step 4 is corrupt" in err


def test_kept_steps_and_the_initialization_are_restored(short: Experiment, short_run: Path, tmp_path: Path) -> None:
    found = fine_tune.restore(short_run, 2)
    assert (found.step, int(found.state.step)) == (2, 2)
    begun = fine_tune.restore(short_run, 0)
    drawn = begun.program.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, begun.state.params, drawn.params)
    assert fine_tune.weights_of(short_run, 0).card.source == "run, step 0"
    for ours, theirs in zip(begun.preprocessing, found.preprocessing, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="run has no step 3, but 0, 2, 4"):
        fine_tune.restore(short_run, 3)
    with pytest.raises(UserError, match="is not a run"):
        fine_tune.weights_of(saving.save(fine_tune.weights_of(short_run), tmp_path / "weights.safetensors"), 2)


@pytest.mark.slow
def test_step_0_of_a_fine_tuned_run_names_its_weights(short: Experiment, short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    tuned = fine_tune.start_from(short, short_run).shortened(2)
    train(tuned, 0, tmp_path / "tuned", progress=Told(), data_dir=digits_dir, devices=1)
    with pytest.raises(UserError, match=f"starts from {short_run}"):
        fine_tune.restore(tmp_path / "tuned", 0)
