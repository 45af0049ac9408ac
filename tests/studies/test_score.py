"""Scores of runs and of weights: the same network has the same score whatever it lies in."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, Card, Pretrained, View, architecture
from resnet_jax.models.pretrained import loading, saving
from resnet_jax.models.pretrained.card import IMAGENET_VIEW
from resnet_jax.studies import score
from resnet_jax.training import trained

GREY = View(mean=(0.3,), deviation=(0.4,))


def drawn(model: Architecture, **fields: Any) -> Pretrained:
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(1))
    return Pretrained(Card(architecture=model, **{"view": GREY, "source": "drawn"} | fields), params, batch_stats)


def scored(source: Path, digits_dir: str, **fields: Any) -> dict[str, Any]:
    return score.score(source, **{"data": None, "split": None, "batch_size": 72, "data_dir": digits_dir} | fields)


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_run_and_its_weights_have_the_same_score(split: str, short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    file = saving.save(trained.weights(short_run), tmp_path / "weights.safetensors")
    ours, theirs = (scored(each, digits_dir, split=split) for each in (short_run, file))
    for name in ("error_percent", "mean_loss", "examples", "split"):
        assert ours[name] == theirs[name]
    assert (ours["step"], theirs["step"]) == (4, None)
    if split == "test":
        assert theirs["error_percent"] == json.loads((short_run / "result.json").read_text())["value"]


def test_the_protocol_of_weights_says_nothing_of_their_training(digits_dir: str, short: Any) -> None:
    found = score.score_weights(drawn(short.model, sha256="ab"), data="digits", split=None, batch_size=72, data_dir=digits_dir)
    assert found["protocol"] == {
        "dataset": "digits",
        "dataset_version": sources.describe("digits", digits_dir).version,
        "test_images": 360,
        "weights": "drawn",
        "sha256": "ab",
        "padding": "explicit symmetric",
        "preprocessing": "channel: mean 0.3, deviation 0.4",
        "view": "single 8x8",
        "dtype": "float32",
    }
    pixels = View(mean=tuple(tuple((0.5,) for _ in range(8)) for _ in range(8)), deviation=(1.0,))
    seen = score.weights_protocol(drawn(short.model, view=pixels), sources.describe("digits", digits_dir), "train")
    assert (seen["preprocessing"], seen["test_images"]) == ("pixel_mean", 1437)


def test_resized_and_cropped_images_fit_whatever_their_size(digits_dir: str, short: Any) -> None:
    weights = drawn(replace(short.model, input_shape=(16, 16, 1)), data="digits")
    options = {"data": None, "split": None, "batch_size": 72, "data_dir": digits_dir}
    with pytest.raises(UserError, match=r"digits has images of \(8, 8, 1\) in 10 classes; the network takes \(16, 16, 1\)"):
        score.score_weights(weights, **options)
    view = dataclasses.replace(GREY, resize=20, crop=16, interpolation="bicubic")
    found = score.score_weights(replace(weights, card=replace(weights.card, view=view)), **options)
    assert found["examples"] == 360
    # Files of others do not say for which size they are: it was guessed.
    guessed = replace(weights, card=replace(weights.card, convention="torchvision"))
    assert score.score_weights(guessed, **options)["protocol"]["view"] == "single 8x8"
    pixels = View(mean=(((0.5,),) * 9,) * 9, deviation=(1.0,))
    with pytest.raises(UserError, match=r"a mean image of \(9, 9, 1\); the images of digits are shown as \(8, 8, 1\)"):
        score.score_weights(replace(guessed, card=replace(guessed.card, view=pixels)), **options)
    assert found["protocol"]["view"] == "single 16x16 of the shorter side at 20, bicubic"


def test_what_cannot_be_scored_is_said(short_run: Path, digits_dir: str, short: Any, tmp_path: Path) -> None:
    file = saving.save(drawn(short.model), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="there is neither a run nor a file of weights at /nowhere"):
        scored(Path("/nowhere"), digits_dir)
    with pytest.raises(UserError, match="drawn does not say which images it was trained on: say which to score, as --data"):
        scored(file, digits_dir)
    with pytest.raises(UserError, match="digits has no split 'validation'; it has test, train"):
        scored(file, digits_dir, data="digits", split="validation")
    for source in (file, short_run):
        with pytest.raises(UserError, match="--batch-size is 60; use a positive multiple of the 8 devices"):
            scored(source, digits_dir, data="digits", batch_size=60)
    five = saving.save(drawn(replace(short.model, num_classes=5)), tmp_path / "five.safetensors")
    with pytest.raises(UserError, match=r"in 10 classes; the network takes \(8, 8, 1\) in 5"):
        scored(five, digits_dir, data="digits")


@pytest.mark.slow
def test_photographs_through_an_untrained_resnet_18(tmp_path: Path) -> None:
    """From tensors under torchvision's names to a score, each photograph once."""
    if "imagenet2012" not in sources.prepared():
        pytest.skip("no photographs of imagenet2012 are prepared: set TFDS_DATA_DIR")
    file = tmp_path / "resnet18.safetensors"
    saving.export(drawn(architecture("resnet18"), view=IMAGENET_VIEW), "torchvision", file)
    small = {"resize": 72, "crop": 64}
    weights = loading.load_pretrained(file, "torchvision", view=small, data="imagenet2012")
    found = score.score_weights(weights, data=None, split=None, batch_size=80, data_dir=None)
    info = sources.describe("imagenet2012")
    assert (found["examples"], found["split"]) == (info.examples["validation"], "validation")
    assert 95 <= found["error_percent"] <= 100
    assert np.isfinite(found["mean_loss"])
