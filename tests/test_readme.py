"""The README's Python runs as it stands there, and its commands exist."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from resnet_jax import cli, models
from resnet_jax import weights as weights_lib
from resnet_jax.models import components
from resnet_jax.studies import report
from resnet_jax.weights import saving
from resnet_jax.weights.card import IMAGENET_VIEW

from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The names that the README's Python leaves behind."""
    folder = tmp_path_factory.mktemp("readme")
    architecture = models.architecture("resnet18")
    _, params, batch_stats = jax.jit(architecture.init)(jax.random.key(0))
    card = weights_lib.Card(architecture=architecture, view=IMAGENET_VIEW, source="drawn")
    saving.export(weights_lib.Pretrained(card, params, batch_stats), "torchvision", folder / "resnet18.safetensors")
    names: dict = {"images": jax.random.normal(jax.random.key(0), (2, 32, 32, 3)), "jax": jax, "jnp": jnp, "optax": optax, "linen": linen}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    with contextlib.chdir(folder):
        for block in blocks:
            exec(block, names)
    return names


@pytest.mark.slow
def test_the_python_of_the_readme_runs(readme: dict) -> None:
    names = readme
    assert names["logits"].shape == (2, 10)
    assert list(names["maps"]) == ["stem", "stage1", "stage2", "stage3"]
    assert names["per_pixel"].shape == (2, 4, 4, 3)  # 32 pixels at stride 8
    assert not np.allclose(names["lesioned"], names["swapped"])
    assert names["network"](jnp.zeros((1, 64, 64, 3))).shape == (1, 1000)
    assert names["pretrained"].card.view == IMAGENET_VIEW


@pytest.mark.slow
def test_the_readmes_trunk_trains_its_new_layer_and_nothing_else(readme: dict) -> None:
    params, images = readme["weights"], jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    @jax.jit
    def step(params: dict, state: Any) -> dict:
        gradients = jax.grad(lambda p: nnx.merge(readme["graphdef"], p, readme["statistics"], copy=True)(images).sum())(params)
        return optax.apply_updates(params, readme["frozen"].update(gradients, state, params)[0])

    after = step(params, readme["state"])
    jax.tree.map(np.testing.assert_array_equal, params["trunk"], after["trunk"])
    moved = np.asarray(params["classify"]["kernel"]) != after["classify"]["kernel"]
    assert moved.mean() > 0.5  # a feature that is zero everywhere moves nothing


@pytest.mark.slow
def test_the_readmes_linen_module_has_the_trunks_variables(readme: dict) -> None:
    module, images = readme["Classifier"](), readme["images"]
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert variables["params"]["trunk"]["stages"][0][0]["stacked"]["branch"]["convs"][0]["kernel"].shape == (1, 3, 3, 8, 8)
    variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), variables)
    logits, moved = module.apply(variables, images, True, mutable=["batch_stats"])
    assert logits.shape == (2, 3)
    assert moved["batch_stats"].keys() == {"trunk"}


def test_the_counts_of_the_readme_are_those_of_the_paper_and_of_torchvision() -> None:
    """papers.md A1: 3.8580e9 with the stride in the 1x1 (the paper), 4.0892e9 in the 3x3."""
    for stride_in_1x1, rounded in ((True, 3.8580), (False, 4.0892)):
        found = models.count(models.imagenet_architecture(50, stride_in_1x1=stride_in_1x1)).multiply_adds
        assert round(found / 1e9, 4) == rounded
        assert str(found) in README


def test_the_commands_and_experiments_of_the_readme_exist() -> None:
    for command in re.findall(r"^resnet-jax (\w+)", README, flags=re.MULTILINE) + re.findall(r"^\| `(\w+)[ `]", README, flags=re.MULTILINE):
        assert command in {name.split()[0] for name in cli.COMMANDS}
    for reference in re.findall(r"experiments/\w+\.py:\w+", README):
        assert callable(components.load(f"{ROOT}/{reference}"))


def test_the_tables_of_the_readme_are_those_of_the_committed_results() -> None:
    """`make readme` fills them; no number of a table is typed."""
    filled, changed = report.filled(README, ROOT)
    assert changed == 0, "run `make readme` and read the difference"
    assert filled.count("<!-- results experiments/results/") >= 4


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda p: p.name)
def test_committed_results_say_where_and_how_they_were_found(path: Path) -> None:
    """Device, versions, commit and command; none of a machine's own folders."""
    text = json.loads(path.read_text())
    for where in [text["common"] | each for each in text["results"]] if text.get("kind") == "study" else [text]:
        assert where.get("device") or where.get("devices")
        assert {"jax", "flax", "python"} <= where["versions"].keys()
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", where["commit"])
    assert text["command"].startswith("resnet-jax ")
    assert path.name in README, "a result that the README does not show"
    assert not re.search(r"/(tmp|home|work|root|Users)/", path.read_text())
