"""Distances and changes against units that are called one by one, and the command on a real run."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from made_up_network import EXAMPLES, SMALL, SMALL_PLAIN, shown, units_of, weights_of

from resnet_jax import cli
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import identity
from resnet_jax.models import asking
from resnet_jax.models.pretrained.loading import Pretrained


def walked(weights: Pretrained, images: Any) -> list[tuple[np.ndarray, ...]]:
    """Of each unit what came in, its branch and its whole, a row an image."""
    model, units = units_of(weights)
    x, found = model.stem(images), []
    for unit in units:
        branch = unit.branch(x)
        whole = asking.call(unit.shortcut, x, branch, train=False)
        found.append(tuple(np.float64(each).reshape(len(x), -1) for each in (x, branch, whole)))
        x = jax.nn.relu(whole)
    return found


def norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=1)


def test_a_residual_network_is_measured_as_its_units_are_called_one_by_one() -> None:
    weights = weights_of(SMALL)
    images = shown(EXAMPLES.images)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(3), 0), images.shape))
    noise = noise * (0.1 * norm(images.reshape(5, -1)) / norm(noise.reshape(5, -1))).reshape(5, 1, 1, 1)
    found = identity.measure(weights, EXAMPLES, change=0.1, seed=3)
    for unit, (one, other) in enumerate(zip(walked(weights, images), walked(weights, images + noise), strict=True)):
        (x, branch, whole), (_, branch_then, whole_then) = one, other
        carried = x if unit < 2 else whole - branch
        expected = {
            "distance": norm(branch) / norm(carried),
            "leverage": norm(whole) / norm(branch),
            "branch_change": norm(branch_then - branch) / norm(branch),
            "whole_change": norm(whole_then - whole) / norm(whole),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(found, name)[unit], values.mean(), rtol=2e-3, err_msg=f"{name} of unit {unit}")


def test_the_branch_of_a_plain_unit_is_the_whole() -> None:
    weights = weights_of(SMALL_PLAIN)
    found = identity.measure(weights, EXAMPLES)
    np.testing.assert_allclose(found.leverage, np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(found.branch_change, found.whole_change, rtol=1e-6)
    for unit, (x, _, whole) in enumerate(walked(weights, shown(EXAMPLES.images))[:2]):
        np.testing.assert_allclose(found.distance[unit], (norm(whole - x) / norm(x)).mean(), rtol=1e-3)
    assert np.isnan(found.distance[2]), "nothing carries what came in to another size"


def test_batches_may_be_of_any_size() -> None:
    weights = weights_of(SMALL)
    whole, parts = (identity.measure(weights, EXAMPLES, batch_size=size) for size in (5, 2))
    np.testing.assert_allclose(parts.distance, whole.distance, rtol=1e-4)


@pytest.mark.parametrize(("images", "change"), [(0, 0.02), (5, 0.0), (5, float("nan"))])
def test_what_cannot_be_measured_is_refused(images: int, change: float) -> None:
    with pytest.raises(UserError, match="give at least 1 image, and a change above 0"):
        identity.measure(weights_of(SMALL), Examples(EXAMPLES.images[:images], EXAMPLES.labels[:images]), change=change)


def test_the_command_writes_what_it_shows(short_run: Path, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["lab", "identity", str(short_run), "--images", "50", "--data-dir", digits_dir, "--to", str(tmp_path), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "identity.json").read_text())
    (each,) = printed["data"].values()
    assert len(each["distance"]) == 3
    assert each["change_percent"] == 2
    assert "distance from the identity" in (tmp_path / "identity.svg").read_text()


def test_a_change_of_nothing_is_refused(short_run: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "identity", str(short_run), "--change", "0"])
    assert ended.value.code == 2
    assert "--change is 0" in capsys.readouterr().err
