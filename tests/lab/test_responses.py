"""Responses against a network that is walked through by hand, and the command on real runs and weights."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from made_up_network import EXAMPLES, SMALL, SMALL_PLAIN, shown, units_of, weights_of

from resnet_jax import cli, models
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import responses
from resnet_jax.models import asking
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.pretrained.loading import Pretrained


def walked(weights: Pretrained) -> tuple[list[Any], list[tuple[Any, ...]]]:
    """Of every layer its response, of every unit input, branch and what travels beside it; the units called one by one."""
    model, parts = units_of(weights)
    x = model.stem.conv(shown(EXAMPLES.images))
    x = model.stem.after.layers[0](x, train=False)
    layers, units = [x], []
    x = jax.nn.relu(x)
    for unit in parts:
        first = unit.branch.after[0].layers[0](unit.branch.convs[0](x), train=False)
        second = unit.branch.after[1].layers[0](unit.branch.convs[1](jax.nn.relu(first)), train=False)
        merged = asking.call(unit.shortcut, x, second, train=False)
        layers += [first, second]
        units.append((x, second, merged - second))
        x = jax.nn.relu(merged)
    return [np.float64(each) for each in layers], [tuple(np.float64(each) for each in unit) for unit in units]


@pytest.mark.quick(1)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_responses_are_those_of_the_network_walked_through(batch_size: int) -> None:
    weights = weights_of(SMALL)
    found = responses.measure(weights, EXAMPLES, batch_size=batch_size)
    layers, units = walked(weights)
    assert len(found.layers) == len(layers) == 7
    np.testing.assert_allclose(found.deviation, [each.std() for each in layers], rtol=1e-4)
    for number, (x, branch, beside) in enumerate(units):
        flat, over, along = (each.reshape(5, -1) for each in (x, branch, beside))
        ratio = np.linalg.norm(over, axis=1) / np.linalg.norm(flat, axis=1)
        cosine = (over * along).sum(1) / np.linalg.norm(over, axis=1) / np.linalg.norm(along, axis=1)
        np.testing.assert_allclose([found.ratio[number], found.cosine[number]], [ratio.mean(), cosine.mean()], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_each_units_parameters() -> None:
    weights = weights_of(SMALL)
    model: Any = weights.build()
    images = shown(EXAMPLES.images)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> Any:
        scores = jax.nn.log_softmax(nnx.merge(graphdef, params, rest, copy=True)(images, True))  # pyright: ignore[reportCallIssue]
        return -scores[jnp.arange(5), EXAMPLES.labels].mean()

    slopes = nnx.to_pure_dict(jax.grad(loss)(params))["stages"]
    stacked = [np.sqrt(sum(float(jnp.sum(leaf[i] ** 2)) for leaf in jax.tree.leaves(slopes[0][0]))) for i in (0, 1)]
    last = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(slopes[1])))
    np.testing.assert_allclose(responses.measure(weights, EXAMPLES).gradient, [*stacked, last], rtol=1e-3)


def test_a_plain_network_has_nothing_beside_its_branches() -> None:
    found = responses.measure(weights_of(SMALL_PLAIN), EXAMPLES)
    assert np.isnan(found.cosine).all()
    assert (found.ratio > 0).all()


@pytest.mark.slow
def test_layers_are_3x3_and_behind_their_normalisation_where_one_follows() -> None:
    """ResNet-50: 16 of them, one a bottleneck. Full pre-activation has none behind a branch's last."""
    assert len(responses.layers(weights_of(models.architecture("cifar_resnet20")))) == 19
    preactivated = models.Architecture(stages=(1,), features=(3,), order=FullPreactivation, input_shape=(6, 6, 3), num_classes=4)
    assert responses.layers(weights_of(preactivated)) == ("stem/conv", "unit0/branch/after/0/layers/0", "unit0/branch/convs/1")
    bottlenecks = models.Architecture(stages=(2,), features=(4,), branch=models.architecture("resnet50").branch, num_classes=4)
    assert [name for name in responses.layers(weights_of(bottlenecks)) if name.startswith("unit")] == [
        f"unit{number}/branch/after/1/layers/0" for number in (0, 1)
    ]


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        responses.measure(weights_of(SMALL), Examples(EXAMPLES.images[:0], EXAMPLES.labels[:0]))


def test_the_command_writes_table_data_and_figure(short_run: Path, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["lab", "responses", str(short_run), "--images", "50", "--data-dir", digits_dir, "--to", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "standard deviation" in printed
    (found,) = json.loads((tmp_path / "responses.json").read_text())["data"].values()
    assert found["images"] == 50
    assert len(found["layers"]) == len(found["deviation"]) == 7
    with (tmp_path / "responses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["standard deviation"]) for row in rows] == found["deviation"]
    assert (tmp_path / "responses.png").read_bytes().startswith(b"\x89PNG")
    assert "standard deviation of the response" in (tmp_path / "responses.svg").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--images", "0"), "--images is 0"), (("--split", "nowhere"), "no split 'nowhere'"), (("--data", "nothing"), "nothing")],
)
def test_bad_input_is_refused(
    short_run: Path, digits_dir: str, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "responses", str(short_run), "--data-dir", digits_dir, *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_steps_of_a_run_stand_beside_each_other(short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    given = ("--images", "50", "--data-dir", digits_dir, "--to", str(tmp_path))
    cli.main(["lab", "responses", str(short_run), "--steps", "0", "4", *given])
    data = json.loads((tmp_path / "responses.json").read_text())["data"]
    assert list(data) == ["run, step 0", "run, step 4"]
    # Before training every BN has a scale of 1, and statistics of these images.
    np.testing.assert_allclose(data["run, step 0"]["deviation"], 1, atol=2e-3)
    assert not np.allclose(data["run, step 4"]["deviation"], data["run, step 0"]["deviation"], atol=2e-3)


@pytest.mark.parametrize(("step", "message"), [("-1", "--steps are [-1]"), ("3", "there is 0, 2, 4")])
def test_steps_that_are_not_there_are_refused(
    short_run: Path, digits_dir: str, step: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "responses", str(short_run), "--data-dir", digits_dir, "--steps", step])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
