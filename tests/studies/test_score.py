"""Scores of runs and of weights: the same network has the same score in either form."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from resnet_jax import cli
from resnet_jax.data import datasets, local
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Architecture
from resnet_jax.studies import score
from resnet_jax.terminal import out
from resnet_jax.training import fine_tune
from resnet_jax.weights import Card, Pretrained, View, saving

GRAY = View(mean=(0.3,), deviation=(0.4,))


def drawn(model: Architecture, **fields: Any) -> Pretrained:
    _, params, batch_stats = jax.jit(model.init)(jax.random.key(1))
    return Pretrained(Card(architecture=model, **{"view": GRAY, "source": "drawn"} | fields), params, batch_stats)


def scored(source: Path | Pretrained, digits_dir: str, **fields: Any) -> dict[str, Any]:
    (result,) = score.score(source, **{"data": None, "split": None, "batch_size": 72, "data_dir": digits_dir} | fields)
    return result


def test_score_of_a_run_equals_that_of_its_weights(short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    file = saving.save(fine_tune.weights_of(short_run), tmp_path / "weights.safetensors")
    names = ("error_percent", "top5_error_percent", "mean_loss", "examples", "split")
    ours, theirs = (scored(source, digits_dir) for source in (short_run, file))
    assert [ours[name] for name in names] == [theirs[name] for name in names]
    assert (ours["step"], theirs["step"]) == (4, None)
    assert theirs["error_percent"] == json.loads((short_run / "result.json").read_text())["value"]


def test_weights_protocol_has_no_training_fields(digits_dir: str, short: Any) -> None:
    info = datasets.describe("digits", digits_dir)
    channel = score.weights_protocol(drawn(short.model, sha256="ab"), info, "test", Protocol())
    of_network = {"padding": "explicit symmetric", "dtype": "float32", "weights": "drawn", "sha256": "ab", "view": "single 8x8"}
    of_data = {"dataset": "digits", "dataset_version": info.version, "test_images": 360}
    assert channel == of_network | of_data | {"preprocessing": "channel: mean 0.3, deviation 0.4"}


def test_score_accepts_images_of_any_size_that_are_resized_or_cropped(digits_dir: str, short: Any) -> None:
    weights = drawn(replace(short.model, input_shape=(16, 16, 1)), data="digits")

    def with_card(**fields: Any) -> Pretrained:
        return replace(weights, card=replace(weights.card, **fields))

    with pytest.raises(UserError, match=r"digits has images of \(8, 8, 1\) but the network takes \(16, 16, 1\)"):
        scored(weights, digits_dir)
    result = scored(with_card(view=replace(GRAY, resize=20, crop=16, interpolation="bicubic")), digits_dir)
    assert (result["examples"], result["protocol"]["view"]) == (360, "single 16x16 of 20, bicubic")
    # Foreign files do not state an image size: it was guessed.
    assert scored(with_card(convention="torchvision"), digits_dir)["protocol"]["view"] == "single 8x8"
    pixels = View(mean=(((0.5,),) * 9,) * 9, deviation=(1.0,))
    with pytest.raises(UserError, match=r"a mean image of \(9, 9, 1\); the images of digits are scored as \(8, 8, 1\)"):
        scored(with_card(convention="torchvision", view=pixels), digits_dir)


def test_classes_of_a_folder_are_matched_by_name(short: Any, tmp_path: Path) -> None:
    """Another order is mapped, a subset is scored over its own classes, and other names are rejected; a test split suffices."""
    rng, folder = np.random.default_rng(0), tmp_path / "pets"
    names, images = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu"), rng.integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)
    for number, image in enumerate(images):
        file = folder / "test" / names[number % 7] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    model = replace(short.model, input_shape=(8, 8, 3), num_classes=7)
    order = ("fox", "cat", "ant", "gnu", "bee", "dog", "eel")
    weights = drawn(model, view=View(mean=(0.3,) * 3, deviation=(0.4,) * 3), classes=order, data="/elsewhere")
    normalized = jnp.asarray((images / 255 - 0.3) / 0.4, jnp.float32)
    logits = np.asarray(weights.apply()(weights.params, weights.batch_stats, normalized, train=False)[0])
    for lacking in ((), ("ant", "cat", "dog", "fox", "gnu")):
        for name in lacking:
            shutil.rmtree(folder / "test" / name)
        kept = [name for name in order if name not in lacking]
        result = scored(weights, "", data=str(folder))
        best = logits[:, [order.index(name) for name in kept]].argmax(axis=1)
        wrong = [kept[best[number]] != names[number % 7] for number in range(70) if names[number % 7] in kept]
        assert (result["examples"], result["error_percent"]) == (len(wrong), pytest.approx(100 * np.mean(wrong)))
        assert result["protocol"].get("classes") == ("2 of 7" if lacking else None)
        assert (result["top5_error_percent"] is None) == bool(lacking)
        local._folder.cache_clear()
        datasets.labels.cache_clear()
        datasets.read.cache_clear()
    examples = score.images_of(weights, str(folder), None, None, 1000)
    assert sorted(examples.labels.tolist()) == [4] * 10 + [6] * 10
    (folder / "test" / "bee").rename(folder / "test" / "wasp")
    local._folder.cache_clear()
    with pytest.raises(UserError, match="pets has 2 classes; the network has 7, but not wasp"):
        scored(weights, "", data=str(folder))


def test_imported_weights_are_scored_by_position_under_other_labels(digits_dir: str, short: Any) -> None:
    """Libraries call a class of ImageNet "tench, Tinca tinca", TFDS "n01440764"; a run on a folder has the names of its folders."""
    info = replace(datasets.describe("digits", digits_dir), name="imagenet2012", classes=tuple(f"n{number}" for number in range(10)))
    card = Card(architecture=short.model, view=GRAY, source="", data="imagenet2012", classes=tuple("abcdefghij"))
    for convention in ("torchvision", "timm", "transformers"):
        weights = Pretrained(replace(card, convention=convention), {}, {})
        assert score.match_classes(weights, info, "test", digits_dir) == ((*range(10),), (True,) * 10)
    with pytest.raises(UserError, match="the network has 10, but not n0"):
        score.match_classes(Pretrained(card, {}, {}), info, "test", digits_dir)


def test_score_rejects_bad_input(digits_dir: str, short: Any) -> None:
    weights = drawn(short.model)
    for source, message, fields in (
        (Path("/nowhere"), "there is neither a run nor a file of weights at /nowhere", {}),
        (weights, "drawn does not name its data set: give one, as --data", {}),
        (weights, "digits has no split 'validation'; it has test, train", {"data": "digits", "split": "validation"}),
        (weights, "--batch-size must be at least 1, got 0", {"data": "digits", "batch_size": 0}),
        (drawn(replace(short.model, num_classes=5)), "digits has 10 classes; the network has 5", {"data": "digits"}),
    ):
        with pytest.raises(UserError, match=message):
            scored(source, digits_dir, **fields)


@pytest.mark.slow
def test_mean_image_of_another_size_is_averaged_over_pixels(digits_dir: str, short: Any) -> None:
    """The protocol states it. A mean image of the same size is subtracted unchanged."""
    image = np.random.default_rng(0).uniform(0, 0.5, (8, 8, 1))
    pixels = View(mean=tuple(tuple(map(tuple, row)) for row in image.tolist()), deviation=(0.4,))
    level = View(mean=(float(image.astype(np.float32).mean()),), deviation=(0.4,))

    def score_of(view: View, text: str) -> dict[str, Any]:
        return scored(drawn(short.model, view=view), digits_dir, data="digits", requested=[protocols.parse(text)])

    averaged = "pixel_mean, averaged over pixels"
    for text, preprocessing in (("8/6", averaged), ("multi-scale-8", averaged), ("8/8", "pixel_mean")):
        ours, theirs = score_of(pixels, text), score_of(level, text)
        assert (ours["mean_loss"] == pytest.approx(theirs["mean_loss"], rel=1e-6)) == (preprocessing == averaged)
        assert ours["protocol"]["preprocessing"] == preprocessing


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
    one = json.loads(printed("--protocol", "ten-crop-12/8", "--json"))
    assert (one["protocol"]["view"], one["examples"]) == ("10 crops 8x8 of 12", 360)
    whole, crops = json.loads(printed("--protocol", "8/8", "ten-crop-12/8", "--json"))
    assert {**crops, "seconds": 0} == {**one, "seconds": 0}
    assert whole["error_percent"] == value
    row = next(line for line in printed("--protocol", "8/8", "ten-crop-12/8").splitlines() if one["protocol"]["view"] in line)
    assert all(text in row for text in ("360", f"{one['error_percent']:.2f}", f"{one['top5_error_percent']:.2f}"))
    with pytest.raises(SystemExit):
        printed("--protocol", "12/8", "eleven-crop")
    assert "'eleven-crop' is no protocol" in capsys.readouterr().err
