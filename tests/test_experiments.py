"""Experiments: the resolved configuration has not drifted, the recipe is that of the papers, and those that differ most train."""

import ast
import dataclasses
import functools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.models.components import component, load
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Original
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad
from resnet_jax.studies import comparison, ledger
from resnet_jax.training import config, optimizer
from resnet_jax.training.config import Checkpointing, Experiment, Loading, Optimizer
from resnet_jax.training.run_dir import protocol
from resnet_jax.training.train import train

from conftest import ROOT
from studies.synthetic_runs import INFO
from write_golden import GOLDEN, public_experiments, resolved_experiments

FILES = sorted((ROOT / "experiments").glob("*.py"))
PUBLIC: dict[str, Any] = {f"{path.stem}.{name}": recipe for path in FILES for name, recipe in public_experiments(path).items()}
STUDIES: dict[str, tuple[Experiment, ...]] = {name: recipe for name, recipe in PUBLIC.items() if isinstance(recipe, tuple)}
DATASETS = {
    "digits": replace(INFO, name="digits", examples={"train": 1437, "test": 360}, image_shape=(8, 8, 1)),
    "cifar10": INFO,
    "cifar100": replace(INFO, name="cifar100", num_classes=100),
    "imagenet2012": replace(
        INFO, name="imagenet2012", examples=dict(train=1_281_167, validation=50_000), image_shape=(None, None, 3), num_classes=1000
    ),
}


def differing(first: Any, second: Any, path: str = "") -> set[str]:
    """Names of the fields in which two experiments differ."""
    if not dataclasses.is_dataclass(first) or type(first) is not type(second) or path == "model.shortcut":
        return set() if first == second else {path}
    names = {f.name: f"{path}.{f.name}" if path else f.name for f in dataclasses.fields(first)}
    return set().union(*(differing(getattr(first, name), getattr(second, name), at) for name, at in names.items()))


def test_resolved_experiments_equal_the_golden_files() -> None:
    resolved = resolved_experiments()
    assert resolved.keys() == {path.name for path in GOLDEN.glob("*.json")}, "run `make golden` and read the difference"
    for name, text in resolved.items():
        assert text == (GOLDEN / name).read_text(), f"{name} changed; where that is meant, run `make golden` and read the difference"


def test_recipes_are_documented_and_fit_their_data() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert all(word in (ast.get_docstring(tree) or "") for word in ("Command:", "Recipe:", "arXiv")), path.name
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        assert all(map(ast.get_docstring, functions)), path.name
    for study, variants in STUDIES.items():
        # Two names that differ in case alone are one folder on some machines.
        assert len({variant.name.lower() for variant in variants}) == len(variants), study
        for variant in variants:
            variant.check(DATASETS[variant.data.name], devices=8)
            assert re.fullmatch("[A-Za-z0-9.-]+" if study.startswith("degradation.") else "[a-z0-9.-]+", variant.name), study


# Stated on the experiments' pages: no ZCA whitening; crops of 320 pixels have no mean image; fb.resnet.torch's augmentation is written
# out; the study of Table 5 has a variant with the aspect ratio, of the same network. Ten crops are evaluated after the run.
DEVIATIONS = {("zagoruyko2016_wide", "preprocessing"), ("he2015_imagenet", "view"), ("xie2017_resnext", "augmentation")}
DEVIATIONS |= {("he2016_imagenet", field) for field in ("view", "preprocessing", "augmentation")}


def test_protocol_of_an_experiment_is_that_of_the_ledger() -> None:
    """Steps, batches, BatchNorm groups, images, rates and augmentation, of every published error with a study."""
    entries = [entry for key in ledger.papers() for entry in ledger.load(key).entries]
    studied = [entry for entry in entries if entry.study and entry.network and entry.metric in comparison.MEASURED]
    assert len(studied) > 150
    structure = functools.cache(lambda model: comparison.structure(config.resolve(model)))
    deviations = set()
    for entry in studied:
        file, _, function = str(entry.study).partition(":")
        assert (ROOT / file).is_file()
        name = Path(file).stem
        variant = next(
            variant
            for variant in STUDIES[f"{name}.{function}"]
            if structure(variant.model) == structure(entry.architecture())
            and entry.protocol.get("dataset", variant.data.name) == variant.data.name
            and entry.protocol.get("batch_size", variant.batch_size) == variant.batch_size
        )
        ours = protocol(variant, DATASETS[variant.data.name])
        # The step of an error is selected after the run. The last epoch is cut off by some and filled by others.
        stated = {field: value for field, value in entry.protocol.items() if field not in ("selection", "epochs")}
        deviations |= {(name, field) for field, value in stated.items() if ours[field] != value}
        assert ours["epochs"] == pytest.approx(entry.protocol.get("epochs", ours["epochs"]), rel=0.01)
    assert deviations == DEVIATIONS


def test_studies_of_he2015_compare_shortcuts() -> None:
    """Section 4.2: 0.01 until the training error is below 80 % for 110 layers. Table 2."""
    names = [f"he2015_cifar10.resnet{depth}" for depth in (20, 56, 110, 1202)]
    assert [PUBLIC[name].schedule.warmup_until_error for name in names] == [1.0, 1.0, 0.8, 0.8]
    names += [f"he2015_imagenet.resnet{depth}" for depth in (18, 34, 50, 101, 152)] + ["degradation.resnet56"]
    for name in names:
        residual, plain = PUBLIC[name], PUBLIC[name.replace(".resnet", ".plain")]
        assert differing(residual, plain) == {"name", "model.shortcut"}
        assert plain.model.shortcut == NoShortcut


def test_studies_of_he2016_change_one_thing() -> None:
    """Table 1: eleven shortcuts. Table 2: five orders of blocks of two layers, and of three. Veit et al. 2016 train the last order."""
    # The catalog's networks of 164 layers are bottlenecks.
    for depth in (20, 164):
        names = "he2016_shortcuts.py:table1", "he2016_orders.py:table2"
        shortcuts, orders = (load(f"{ROOT}/experiments/{name}")(depth) for name in names)
        assert (shortcuts[0].model.order, shortcuts[0].model.shortcut, len(shortcuts)) == (Original, ZeroPad, 11)
        assert all(differing(shortcuts[0], variant) == {"name", "model.shortcut"} for variant in shortcuts[1:])
        for five, layers in ((orders[:5], 2), (orders[5:], 3)):
            assert five[0].model.stages == shortcuts[0].model.stages == ((depth - 2) // 6,) * 3
            assert five[0].name.endswith(f"-{layers * sum(five[0].model.stages) + 2}")
            assert all(differing(five[0], variant) == {"name", "model.order"} for variant in five[1:])
    full, effective = STUDIES["veit2016_paths.table"]
    assert differing(STUDIES["he2016_orders.table2"][4], full) == {"name"}
    assert differing(full, effective) == {"name", "model.stochastic_depth.kept"}


def rates(experiment: Experiment, *epochs: float) -> list[float]:
    """The learning rate at the beginning of some epochs, by the transformation that trains."""
    transformation, params = optimizer.make(Optimizer(), experiment.schedule), {"w": jnp.ones(1)}
    state = transformation.init(params)
    steps = [jnp.int32(round(epoch * -(-1_281_167 // experiment.batch_size))) for epoch in epochs]
    states = (optax.tree_utils.tree_set(state, step=step) for step in steps)
    return [float(transformation.update(params, state, params, error=0.9)[1].hyperparams["learning_rate"]) for state in states]


def test_learning_rates_and_averages_of_the_papers() -> None:
    """papers.md A11, Goyal et al. 2017 (0.1 kn / 256 after 5 epochs from 0.1), He et al. 2018. timm's cosine runs over all epochs."""
    v1, v2 = PUBLIC["torchvision_imagenet.v1"], PUBLIC["torchvision_imagenet.v2"]
    assert (v1.steps, v2.steps) == (90 * 5005, 600 * 1252)
    assert rates(v1, 0, 29.99, 30, 60, 89) == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    # A cosine over 595 epochs after the warm-up: halfway at epoch 302.5.
    assert rates(v2, 0, 5, 302.5, 600) == pytest.approx([0.005, 0.5, 0.25, 0.0], abs=1e-6)
    # By hand: 2e-5 x 1024 x 32 / 600 = 1.0923e-3 of the average is new every 32 steps.
    assert v2.optimizer.ema**32 == pytest.approx(1 - 1.0923e-3, abs=1e-7)
    for name, epochs, peak in (("a1", 600, 5e-3), ("a2", 300, 5e-3), ("a3", 100, 8e-3)):
        recipe = PUBLIC[f"wightman2021_strikes_back.{name}"]
        assert rates(recipe, epochs / 2, epochs) == pytest.approx([(peak + 1e-6) / 2, 1e-6], rel=1e-3)
        assert (recipe.steps, recipe.loss.kind, recipe.optimizer.rule) == (epochs * 626, "binary", "lamb")
        assert recipe.evaluation.protocol == "235/224-bicubic", "timm: the floor of 224 / 0.95 = 235.8"
    for variant, batch_size in zip(STUDIES["goyal2017_large_batch.scaling"], (256, 512, 1024, 2048, 4096, 8192), strict=True):
        full = 0.1 * batch_size / 256
        expected = [0.1, (0.1 + full) / 2, full, full / 10, full / 100, full / 1000]
        assert rates(variant, 0, 2.5, 5, 30, 60, 80) == pytest.approx(expected, rel=2e-3)
        assert (variant.batch_size, variant.model.norm) == (batch_size, component(BatchNorm, group_size=32))
    cosine, smoothing, mixup = STUDIES["he2018_bag_of_tricks.refinements"]
    assert rates(cosine, 0, 5, 62.5, 120) == pytest.approx([0.0, 0.4, 0.2, 0.0], abs=1e-6)
    assert replace(smoothing, name=cosine.name, loss=cosine.loss) == cosine
    assert mixup.steps == 200 * 1252


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision_imagenet.v2", "wightman2021_strikes_back.a2", "he2015_imagenet.resnet50"])
def test_recipe_trains_a_small_network_on_photographs(name: str, photographs: DatasetInfo, tmp_path: Path, told) -> None:
    """Every augmentation, loss and rule of the streamed recipes is in one of the three: 3 steps of 16 images on eight devices."""
    recipe, group = PUBLIC[name], 8
    mix, features = recipe.data.mix, tuple(width // 4 for width in recipe.model.features[:2])
    norm = component(recipe.model.norm, group_size=group)
    experiment = replace(
        recipe.shortened(3),
        model=replace(recipe.model, stages=(1, 1), features=features, input_shape=(32, 32, 3), norm=norm),
        data=replace(recipe.data, mix=mix and component(mix, group=group)),
        batch_size=16,
        evaluation=replace(recipe.evaluation, every=3, batch_size=40, protocol="40/32", statistics_batches=1),
        checkpointing=Checkpointing(every=3),
        loading=Loading(threads=2, memory_mb=256),
    )
    result = train(experiment, 1, tmp_path / "run", callbacks=[told], devices=8)
    assert told.records
    assert all(math.isfinite(record["loss"]) for record in told.records)
    assert result["examples"] == photographs.examples["validation"]
