"""Recipes of ImageNet on photographs: each fits the data, and those that differ most train."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.models.components import component, parts
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training.config import Checkpointing, Experiment, Loading
from resnet_jax.training.train import train

from conftest import ROOT
from write_golden import public_experiments

GROUP = 8
# Streamed experiments by file and name.
RECIPES = {
    f"{path.stem}:{variant.name if isinstance(recipe, tuple) else name}": variant
    for path in sorted((ROOT / "experiments").glob("*.py"))
    for name, recipe in public_experiments(path).items()
    for variant in (recipe if isinstance(recipe, tuple) else (recipe,))
    if variant.data.crop is not None
}


def small(experiment: Experiment, side: int) -> Experiment:
    """Three steps of 16 images of ``side`` pixels; groups of 8 images in place of a GPU's batch."""
    norm, options = parts(experiment.model.norm)
    grouped = norm is BatchNorm and options.get("group_size")
    data, evaluation = experiment.data, experiment.evaluation
    return replace(
        experiment.shortened(3),
        model=replace(
            experiment.model,
            input_shape=(side, side, 3),
            norm=component(experiment.model.norm, group_size=GROUP) if grouped else experiment.model.norm,
        ),
        data=data if data.mix is None else replace(data, mix=component(data.mix, group=GROUP)),
        batch_size=16,
        evaluation=replace(
            evaluation,
            every=3,
            batch_size=40,
            protocol=f"{side + 8}/{side}",
            statistics_batches=min(1, evaluation.statistics_batches),
        ),
        checkpointing=Checkpointing(every=3),
        loading=Loading(threads=2, memory_mb=256),
    )


def trains(experiment: Experiment, folder: Path, told, devices: int, info: DatasetInfo) -> dict:
    result = train(experiment, 1, folder, progress=told, devices=devices)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses
    assert all(map(math.isfinite, losses))
    assert result["examples"] == info.examples["validation"]
    return result


def test_recipes_fit_the_photographs_on_eight_devices(photographs: DatasetInfo) -> None:
    assert len({name.partition(":")[0] for name in RECIPES}) == 10
    for name, experiment in RECIPES.items():
        experiment.check(photographs, 8)
        assert (experiment.data.name, experiment.model.num_classes) == ("imagenet2012", 1000), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision_imagenet:v2", "wightman2021_strikes_back:a2", "he2015_imagenet:resnet50"])
def test_recipe_trains_a_small_network_on_eight_devices(name: str, photographs: DatasetInfo, tmp_path: Path, told) -> None:
    """Every augmentation, loss and rule of the streamed recipes is in one of the three."""
    recipe = RECIPES[name]
    features = tuple(width // 4 for width in recipe.model.features[:2])
    experiment = small(replace(recipe, model=replace(recipe.model, stages=(1, 1), features=features)), 32)
    trains(experiment, tmp_path / "run", told, 8, photographs)


@pytest.mark.slow
def test_recipe_trains_resnet50(photographs: DatasetInfo, tmp_path: Path, told) -> None:
    result = trains(small(RECIPES["torchvision_imagenet:v1"], 64), tmp_path / "run", told, 1, photographs)
    assert result["parameters"] == 25_557_032
