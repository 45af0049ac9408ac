"""The recipes of ImageNet on real photographs: each trains, on one device and on eight, with everything that it says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_jax import references
from resnet_jax.configured import configured, parts
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.models import imagenet_architecture
from resnet_jax.models.norms import BatchNorm
from resnet_jax.studies import run
from resnet_jax.training.experiment import Checkpointing, Experiment, Loading

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STREAMED = ("torchvision_imagenet", "he2018_bag_of_tricks", "wightman2021_strikes_back", "goyal2017_large_batch", "hu2018_senet")
STREAMED += ("he2015_imagenet", "he2016_imagenet", "xie2017_resnext", "huang2017_densenet", "zagoruyko2016_wide")
BATCH, GROUP = 16, 8


def of_imagenet(file: str) -> dict[str, Experiment]:
    """Experiments of a file that stream, by function, the cells of studies by their names."""
    path = EXPERIMENTS / f"{file}.py"
    found: dict[str, Experiment] = {}
    for name in references.public_names(references.load_file(path)):
        value = references.load(f"{path}:{name}")()
        for cell in value if isinstance(value, tuple) else (value,):
            if cell.data.crop is not None and cell not in found.values():
                found[cell.name if isinstance(value, tuple) else name] = cell
    return found


RECIPES = {f"{file}:{name}": experiment for file in STREAMED for name, experiment in of_imagenet(file).items()}


def alike(experiment: Experiment) -> str:
    """What makes two recipes train by the same program but for sizes and rates."""
    schedule = experiment.schedule
    return repr(
        (
            experiment.data,
            experiment.loss,
            replace(experiment.optimizer, weight_decay=0.0),
            (schedule.linear_warmup, schedule.cosine_steps > 0, schedule.cosine_from),
            experiment.evaluation.statistics_batches,
            parts(experiment.model.branch)[1].get("zero_scale"),
        )
    )


# One of those that train alike.
DIFFERENT = list({alike(experiment): name for name, experiment in reversed(RECIPES.items())}.values())
# The one with most parts.
QUICK = ("torchvision_imagenet:v2",)


def small(experiment: Experiment, side: int) -> Experiment:
    """Three steps of 16 images of ``side`` pixels; what was said of GPUs' batches is said of 8 images."""
    norm, options = parts(experiment.model.norm)
    if norm is BatchNorm and options.get("group_size"):
        experiment = replace(experiment, model=replace(experiment.model, norm=configured(experiment.model.norm, group_size=GROUP)))
    data = experiment.data
    if data.mix is not None:
        data = replace(data, mix=configured(data.mix, group=GROUP))
    return replace(
        experiment.shortened(3),
        model=replace(experiment.model, input_shape=(side, side, 3)),
        data=data,
        batch_size=BATCH,
        evaluation=replace(
            experiment.evaluation,
            every=3,
            batch_size=40,
            protocol=f"{side + 8}/{side}",
            statistics_batches=min(1, experiment.evaluation.statistics_batches),
        ),
        checkpointing=Checkpointing(every=3),
        loading=Loading(threads=2, memory_mb=256),
    )


def trains(experiment: Experiment, folder: Path, told, devices: int) -> dict:
    result = run.run(experiment, 1, folder, progress=told, devices=devices)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(map(math.isfinite, losses))
    assert result["examples"] == 220
    return result


def test_there_are_the_recipes_that_the_literature_is_compared_by() -> None:
    assert len(RECIPES) > 20
    assert len(DIFFERENT) >= 10
    for file in STREAMED:
        assert any(name.startswith(file) for name in RECIPES), file


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_photographs_and_says_how_they_are_shown(name: str, photographs: DatasetInfo) -> None:
    """As it is, on eight devices: batches are divided, groups fit, protocol and constants agree."""
    experiment = RECIPES[name]
    experiment.check(photographs, 8)
    assert experiment.data.name == "imagenet2012"
    assert experiment.model.num_classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_recipe_trains_a_small_network_on_eight_devices(name: str, photographs: DatasetInfo, tmp_path: Path, told) -> None:
    recipe = RECIPES[name]
    experiment = small(replace(recipe, model=replace(recipe.model, stages=(1, 1), features=recipe.model.features[:2])), 32)
    trains(experiment, tmp_path / "run", told, 8)


# ResNet-50 takes a minute to compile for each: one recipe on one device and three, with most parts between them, on eight are slow tests.
SLOW = {
    ("torchvision_imagenet:v1", 1),
    ("torchvision_imagenet:v2", 8),
    ("wightman2021_strikes_back:a2", 8),
    ("he2015_imagenet:resnet50", 8),
}


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param(name, devices, marks=pytest.mark.slow if (name, devices) in SLOW else pytest.mark.exhaustive)
        for name in DIFFERENT
        for devices in (1, 8)
    ],
)
def test_a_recipe_trains_resnet50(name: str, devices: int, photographs: DatasetInfo, tmp_path: Path, told) -> None:
    """Whole, in its own norm, stem and order of the stride."""
    recipe = RECIPES[name]
    model = recipe.model if recipe.model.stages == (3, 4, 6, 3) else imagenet_architecture(50, norm=recipe.model.norm)
    result = trains(small(replace(recipe, model=model), 64), tmp_path / "run", told, devices)
    assert result["parameters"] > 20_000_000
