"""Every experiment: its resolved configuration has not drifted, its page says what a reader needs."""

import ast
import dataclasses
from pathlib import Path

import pytest
from write_golden import GOLDEN, resolved_experiments

from resnet_jax import models, references
from resnet_jax.configured import configured
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad

ROOT = Path(__file__).parents[1]


def load(reference: str) -> object:
    return references.load(f"{ROOT}/experiments/{reference}")()


def test_resolved_experiments_are_the_golden_ones() -> None:
    resolved = resolved_experiments()
    assert resolved.keys() == {path.name for path in GOLDEN.glob("*.json")}, "run `make golden` and read the difference"
    for name, text in resolved.items():
        assert text == (GOLDEN / name).read_text(), f"{name} changed; where that is meant, run `make golden` and read the difference"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name)
def test_docstrings_say_how_to_run_it_and_what_to_expect(path: Path) -> None:
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree) or ""
    assert all(word in text for word in ("Command:", "Recipe:", "Hardware:", "arXiv"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.name} has no docstring"


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
@pytest.mark.parametrize("kind", ["resnet", "plain"])
def test_cifar10_recipe_is_section_4_2(kind: str, depth: int) -> None:
    """He et al. 2015, Section 4.2: 64k iterations, 0.1 divided by 10 at 32k and 48k, batch 128, weight decay 1e-4, momentum 0.9."""
    experiment = load(f"he2015_cifar10.py:{kind}{depth}")
    assert (experiment.steps, experiment.batch_size) == (64_000, 128)
    assert (experiment.schedule.learning_rate, experiment.schedule.decay_steps) == (0.1, (32_000, 48_000))
    assert (experiment.optimizer.momentum, experiment.optimizer.weight_decay) == (0.9, 1e-4)
    assert (experiment.data.pad, experiment.data.flip, experiment.data.normalization) == (4, True, "pixel_mean")
    assert experiment.schedule.warmup_until_error == (0.8 if depth >= 110 else 1.0)
    assert experiment.model.norm == configured(BatchNorm, group_size=64), "batch 128 on two GPUs (papers.md A1)"
    assert experiment.model.shortcut is (ZeroPad if kind == "resnet" else NoShortcut)
    assert sum(experiment.model.stages) * 2 + 2 == depth


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_plain_twins_differ_in_the_shortcut_alone(depth: int) -> None:
    """Table 2: the plain net is the residual net of option A without its shortcuts, with the same number of parameters."""
    residual, plain = load(f"he2015_imagenet.py:resnet{depth}").model, load(f"he2015_imagenet.py:plain{depth}").model
    assert residual.norm == configured(BatchNorm, group_size=32), "batch 256 on eight GPUs (papers.md A1)"
    assert dataclasses.replace(residual, shortcut=NoShortcut) == plain
    if depth < 50:
        assert models.count(residual).parameters == models.count(plain).parameters


def test_the_demo_gives_all_four_networks_one_recipe() -> None:
    cells = load("degradation.py:figure1")
    assert [cell.name for cell in cells] == ["plain-20", "plain-56", "ResNet-20", "ResNet-56"]
    assert len({dataclasses.replace(cell, name="", model=cells[0].model) for cell in cells}) == 1
