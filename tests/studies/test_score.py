"""Scores of runs and of weights: the same network has the same score in either form."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from resnet_jax import cli
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Architecture, architecture
from resnet_jax.studies import score
from resnet_jax.terminal import out
from resnet_jax.training import fine_tune
from resnet_jax.weights import Card, Pretrained, View, loading, saving
from resnet_jax.weights.card import IMAGENET_VIEW

GRAY = View(mean=(0.3,), deviation=(0.4,))


def drawn(model: Architecture, **fields: Any) -> Pretrained:
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(1))
    return Pretrained(Card(architecture=model, **{"view": GRAY, "source": "drawn"} | fields), params, batch_stats)


def scored(source: Path | Pretrained, digits_dir: str, **fields: Any) -> dict[str, Any]:
    (result,) = score.score(source, **{"data": None, "split": None, "batch_size": 72, "data_dir": digits_dir} | fields)
    return result


def test_score_of_a_run_equals_that_of_its_weights(short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    file = saving.save(fine_tune.weights_of(short_run), tmp_path / "weights.safetensors")
    for split in ("train", "test"):
        ours, theirs = (scored(source, digits_dir, split=split) for source in (short_run, file))
        names = ("error_percent", "top5_error_percent", "mean_loss", "examples", "split")
        assert [ours[name] for name in names] == [theirs[name] for name in names]
        assert (ours["step"], theirs["step"]) == (4, None)
    assert theirs["error_percent"] == json.loads((short_run / "result.json").read_text())["value"]


def test_weights_protocol_has_no_training_fields(digits_dir: str, short: Any) -> None:
    info = datasets.describe("digits", digits_dir)
    assert score.weights_protocol(drawn(short.model, sha256="ab"), info, "test", Protocol()) == {
        "dataset": "digits",
        "dataset_version": info.version,
        "test_images": 360,
        "weights": "drawn",
        "sha256": "ab",
        "padding": "explicit symmetric",
        "preprocessing": "channel: mean 0.3, deviation 0.4",
        "view": "single 8x8",
        "dtype": "float32",
    }
    pixels = View(mean=(((0.5,),) * 8,) * 8, deviation=(1.0,))
    of_pixels = score.weights_protocol(drawn(short.model, view=pixels), info, "train", Protocol())
    assert (of_pixels["preprocessing"], of_pixels["test_images"]) == ("pixel_mean", 1437)


def test_score_accepts_images_of_any_size_that_are_resized_or_cropped(digits_dir: str, short: Any) -> None:
    weights = drawn(replace(short.model, input_shape=(16, 16, 1)), data="digits")

    def with_card(**fields: Any) -> Pretrained:
        return replace(weights, card=replace(weights.card, **fields))

    with pytest.raises(UserError, match=r"digits has images of \(8, 8, 1\) in 10 classes; the network takes \(16, 16, 1\)"):
        scored(weights, digits_dir)
    result = scored(with_card(view=replace(GRAY, resize=20, crop=16, interpolation="bicubic")), digits_dir)
    assert (result["examples"], result["protocol"]["view"]) == (360, "single 16x16 of 20, bicubic")
    # Foreign files do not state an image size: it was guessed.
    assert scored(with_card(convention="torchvision"), digits_dir)["protocol"]["view"] == "single 8x8"
    pixels = View(mean=(((0.5,),) * 9,) * 9, deviation=(1.0,))
    with pytest.raises(UserError, match=r"a mean image of \(9, 9, 1\); the images of digits are scored as \(8, 8, 1\)"):
        scored(with_card(convention="torchvision", view=pixels), digits_dir)


def test_score_rejects_bad_input(digits_dir: str, short: Any) -> None:
    weights = drawn(short.model)
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (Path("/nowhere"), "there is neither a run nor a file of weights at /nowhere", {}),
        (weights, "drawn does not name its data set: give one, as --data", {}),
        (weights, "digits has no split 'validation'; it has test, train", {"data": "digits", "split": "validation"}),
        (weights, "--batch-size is 0; give at least 1", {"data": "digits", "batch_size": 0}),
        (drawn(replace(short.model, num_classes=5)), r"in 10 classes; the network takes \(8, 8, 1\) in 5", {"data": "digits"}),
    ]
    for source, message, fields in cases:
        with pytest.raises(UserError, match=message):
            scored(source, digits_dir, **fields)


@pytest.mark.slow
def test_score_does_not_depend_on_the_batch_size(short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    """Eight devices do not divide batches of 7. Every protocol scores every image once."""
    requested = [None, *map(protocols.parse, ("8/8", "12/8", "ten-crop-12/8", "multi-scale-8,12"))]
    options: dict[str, Any] = {"data": None, "split": None, "data_dir": digits_dir}
    several = {size: score.score(short_run, batch_size=size, requested=requested, **options) for size in (7, 400)}
    exact = ("examples", "error_percent", "top5_error_percent")
    for few, many in zip(*several.values(), strict=True):
        assert [few[name] for name in exact] == [many[name] for name in exact]
        assert few["examples"] == 360
        assert 0 < few["top5_error_percent"] < few["error_percent"]
        assert few["mean_loss"] == pytest.approx(many["mean_loss"], rel=1e-5)
    whole, same, *others = several[400]
    # A crop of 8 from 8 pixels is the whole image.
    assert [same[name] for name in ("error_percent", "mean_loss")] == [whole[name] for name in ("error_percent", "mean_loss")]
    assert len({result["mean_loss"] for result in [whole, *others]}) == 4
    views = ["single 8x8", "single 8x8 of 8", "single 8x8 of 12", "10 crops 8x8 of 12", "multi-scale 8, 12"]
    assert [result["protocol"]["view"] for result in several[400]] == views
    file = saving.save(fine_tune.weights_of(short_run), tmp_path / "weights.safetensors")
    (theirs,) = score.score(file, batch_size=400, requested=requested[3:4], **options)
    assert {**theirs, "step": 4, "seconds": 0, "protocol": {}} == {**several[400][3], "seconds": 0, "protocol": {}}


@pytest.mark.slow
def test_mean_image_of_another_size_is_averaged_over_pixels(digits_dir: str, short: Any) -> None:
    """The protocol states it. A mean image of the same size is subtracted unchanged."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 0.5, (8, 8, 1))
    pixels = View(mean=tuple(tuple(map(tuple, row)) for row in image.tolist()), deviation=(0.4,))
    level = View(mean=(float(image.astype(np.float32).mean()),), deviation=(0.4,))

    def score_of(view: View, text: str) -> dict[str, Any]:
        return scored(drawn(short.model, view=view), digits_dir, data="digits", requested=[protocols.parse(text)])

    for text in ("8/6", "multi-scale-8"):
        ours, theirs = score_of(pixels, text), score_of(level, text)
        assert ours["mean_loss"] == pytest.approx(theirs["mean_loss"], rel=1e-6)
        assert ours["protocol"]["preprocessing"] == "pixel_mean, averaged over pixels"
    ours, theirs = score_of(pixels, "8/8"), score_of(level, "8/8")
    assert abs(ours["mean_loss"] - theirs["mean_loss"]) > 1e-4
    assert ours["protocol"]["preprocessing"] == "pixel_mean"


def test_score_of_a_run_on_other_images_has_no_training_protocol(short_run: Path, digits_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = datasets.describe("digits", digits_dir)
    monkeypatch.setattr(datasets, "describe", lambda name, data_dir: replace(info, name=name, examples={"test": 360}))
    result = scored(short_run, digits_dir, data="other")
    assert (result["protocol"]["dataset"], result["step"], result["split"]) == ("other", 4, "test")
    assert "steps" not in result["protocol"]


def test_top5_error_of_few_classes_is_none(digits_dir: str, short: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info = datasets.describe("digits", digits_dir)
    read = datasets.read
    monkeypatch.setattr(datasets, "describe", lambda name, data_dir: replace(info, num_classes=5))
    monkeypatch.setattr(datasets, "read", lambda info, split: replace(read(info, split), labels=read(info, split).labels % 5))
    result = scored(drawn(replace(short.model, num_classes=5)), digits_dir, data="digits")
    assert result["top5_error_percent"] is None
    assert 0 < result["error_percent"] <= 100


@pytest.mark.slow
def test_evaluate_command_prints_one_score_or_a_table_of_several(
    short_run: Path, digits_dir: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 140)

    def printed(*options: str) -> str:
        cli.main(["evaluate", str(short_run), "--data-dir", digits_dir, "--batch-size", "72", *options])
        return capsys.readouterr().out

    value = json.loads((short_run / "result.json").read_text())["value"]
    assert printed() == f"{short_run}, step 4: error {value:.2f} % on 360 images of test\n"
    one = json.loads(printed("--protocol", "12/8", "--json"))
    several = json.loads(printed("--protocol", "8/8", "12/8", "ten-crop-12/8", "--json"))
    assert [result["protocol"]["view"] for result in several] == ["single 8x8 of 8", "single 8x8 of 12", "10 crops 8x8 of 12"]
    assert {**several[1], "seconds": 0} == {**one, "seconds": 0}
    assert several[0]["error_percent"] == value
    table = printed("--protocol", "12/8", "ten-crop-12/8")
    row = next(line for line in table.splitlines() if "10 crops 8x8 of 12" in line)
    assert all(text in row for text in ("360", *(f"{several[2][name]:.2f}" for name in ("error_percent", "top5_error_percent"))))
    with pytest.raises(SystemExit):
        printed("--protocol", "12/8", "eleven-crop")
    assert "'eleven-crop' is no protocol" in capsys.readouterr().err


@pytest.mark.slow
def test_score_of_an_untrained_resnet_18_is_chance(photographs: datasets.DatasetInfo, tmp_path: Path) -> None:
    """From tensors under torchvision's names to a score, every photograph once."""
    file = tmp_path / "resnet18.safetensors"
    saving.export(drawn(architecture("resnet18"), view=IMAGENET_VIEW), "torchvision", file)
    small = {"resize": 72, "crop": 64}
    weights = loading.load_pretrained(file, "torchvision", view=small, data="imagenet2012")
    (result,) = score.score(weights, data=None, split=None, batch_size=80, data_dir=None)
    assert (result["examples"], result["split"]) == (photographs.examples["validation"], "validation")
    assert result["protocol"]["view"] == "single 64x64 of 72"
    assert 95 <= result["error_percent"] <= 100
    assert np.isfinite(result["mean_loss"])
