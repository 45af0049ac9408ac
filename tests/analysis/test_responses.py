"""Responses against a network whose blocks are called one by one."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax import cli, models
from resnet_jax.analysis import responses
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.weights.loading import Pretrained
from small_network import EXAMPLES, SMALL, SMALL_PLAIN, block_parts, blocks_of, normalized, weights_of


def layers_by_hand(weights: Pretrained) -> list[np.ndarray]:
    model, blocks = blocks_of(weights)
    layers = [model.stem.after.layers[0](model.stem.conv(normalized(EXAMPLES.images)), train=False)]
    x = jax.nn.relu(layers[0])
    for block in blocks:
        first = block.branch.after[0].layers[0](block.branch.convs[0](x), train=False)
        layers += [first, block.branch.after[1].layers[0](block.branch.convs[1](jax.nn.relu(first)), train=False)]
        x = block(x)
    return [np.float64(layer) for layer in layers]


def test_responses_equal_blocks_called_one_by_one() -> None:
    weights = weights_of(SMALL)
    result = responses.measure(weights, EXAMPLES, responses.Options(batch_size=2))
    np.testing.assert_allclose(result.deviation, [layer.std() for layer in layers_by_hand(weights)], rtol=1e-4)
    for number, (x, branch, output) in enumerate(block_parts(weights, normalized(EXAMPLES.images))):
        shortcut = output - branch
        ratio = np.linalg.norm(branch, axis=1) / np.linalg.norm(x, axis=1)
        cosine = (branch * shortcut).sum(1) / np.linalg.norm(branch, axis=1) / np.linalg.norm(shortcut, axis=1)
        np.testing.assert_allclose([result.ratio[number], result.cosine[number]], [ratio.mean(), cosine.mean()], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_responses_gradient_is_that_of_each_block() -> None:
    weights = weights_of(SMALL)
    model: Any = weights.build()
    images = normalized(EXAMPLES.images)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> Any:
        scores = jax.nn.log_softmax(nnx.merge(graphdef, params, rest, copy=True)(images, True))  # pyright: ignore[reportCallIssue]
        return -scores[jnp.arange(5), EXAMPLES.labels].mean()

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))["stages"]
    stacked = [np.sqrt(sum(float(jnp.sum(leaf[i] ** 2)) for leaf in jax.tree.leaves(gradient[0][0]))) for i in (0, 1)]
    last = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient[1])))
    np.testing.assert_allclose(responses.measure(weights, EXAMPLES).gradient, [*stacked, last], rtol=1e-3)
    assert np.isnan(responses.measure(weights_of(SMALL_PLAIN), EXAMPLES).cosine).all()


@pytest.mark.slow
def test_responses_are_taken_after_the_normalization_of_3x3_layers() -> None:
    """ResNet-50 has 16, one per bottleneck. Full pre-activation has no norm after a branch's last convolution."""
    assert len(responses.layers(weights_of(models.architecture("cifar_resnet20")))) == 19
    preactivated = models.Architecture(stages=(1,), features=(3,), order=FullPreactivation, input_shape=(6, 6, 3), num_classes=4)
    assert responses.layers(weights_of(preactivated)) == ("stem/conv", "block0/branch/after/0/layers/0", "block0/branch/convs/1")
    bottlenecks = models.Architecture(stages=(2,), features=(4,), branch=models.architecture("resnet50").branch, num_classes=4)
    measured = [name for name in responses.layers(weights_of(bottlenecks)) if name.startswith("block")]
    assert measured == [f"block{number}/branch/after/1/layers/0" for number in (0, 1)]


@pytest.mark.slow
def test_responses_command_compares_steps(short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    options = ["--steps", "0", "4", "--images", "50", "--data-dir", digits_dir, "--to", str(tmp_path)]
    cli.main(["analyze", "responses", str(short_run), *options])
    rows = json.loads((tmp_path / "responses.json").read_text())["rows"]
    first, last = ([row["standard deviation"] for row in rows if row["network"] == f"run, step {step}"] for step in (0, 4))
    # At initialization every BN has scale 1 and the statistics of these images.
    np.testing.assert_allclose(first, np.ones(7), atol=2e-3)
    assert not np.allclose(last, first, atol=2e-3)
