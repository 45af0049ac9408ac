"""Networks inside wrappers of training scripts: imported as they are, or rejected with the options that import them."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from others import COUNTER, Tensors, filled, identical, shapes, stored
from resnet_jax.errors import UserError
from resnet_jax.models.stems import PooledSmallImageStem
from resnet_jax.weights import Pretrained, load_pretrained, saving
from torch_writer import Tensor, write_zip

NET = filled(shapes((1, 1), (4, 8)))
OTHER = {name: array if name.endswith(COUNTER) else array * np.float32(0.5) for name, array in NET.items()}
HEADLESS = {name: array for name, array in NET.items() if not name.startswith("fc.")}
PROJECTION = {"fc.0.weight": np.ones((8, 8), np.float32), "fc.2.weight": np.ones((2, 8), np.float32)}
ONES = np.ones(3, np.float32)


# nn.Sequential(*model.children()) of a network with two stages.
PLACES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "fc": "9"}
CHILDREN = {".".join([PLACES[top], *rest]): array for (top, *rest), array in ((name.split("."), a) for name, a in NET.items())}


def under(prefix: str, tensors: Tensors = NET) -> Tensors:
    return {prefix + name: array for name, array in tensors.items()}


# The whole file; each imports NET.
ALONE: dict[str, dict[str, Any]] = {
    **{prefix or "none": under(prefix) for prefix in ("", "module.", "_orig_mod.", "model.", "net.", "backbone.", "1.")},
    **{prefix: under(prefix) for prefix in ("module._orig_mod.", "_orig_mod.module.model.", "student.backbone.", "model.0.net.")},
    **{key: {"epoch": 3, key: NET} for key in ("state_dict", "model_state_dict", "model", "net", "weights", "ema")},
    "lightning": {"epoch": 1, "state_dict": under("model."), "hyper_parameters": {"lr": 0.1}},
    "nested": {"checkpoint": {"model": under("module.")}, "optimizer": {"state": {0: {"momentum_buffer": ONES}, "step": ONES}}},
    "ema beside": {"state_dict": NET, "state_dict_ema": OTHER},
    "ema of a module": {"model": under("module."), "model_ema": {"module": OTHER}},
    "ema by prefix": under("model.") | under("ema.", OTHER),
    "children": CHILDREN,
    "average of ema beside": {"params": NET, "avg_params": OTHER},
    "whole beside a part": {"model": NET, "teacher": OTHER | PROJECTION},
}
# Rejected; the message has the options that import NET.
ASKED: dict[str, dict[str, Any]] = {
    "a queue": under("encoder_q.") | {"queue": ONES},
    "two encoders": {"state_dict": under("module.encoder_q.") | under("module.encoder_k.", OTHER)},
    "momentum encoder": under("base_encoder.") | under("momentum_encoder.", OTHER),
    "student and teacher": {"student": under("module.backbone."), "teacher": under("module.backbone.", OTHER)},
    "averaged model": under("module.") | {"n_averaged": np.asarray(5)},
    "normalization layer": under("1.") | {"0.mean": ONES, "0.std": ONES},
    "attacker": under("module.model.") | under("module.attacker.model.", OTHER) | {"module.normalizer.new_mean": ONES},
    "auxiliary head": NET | {"rotation.weight": np.ones((4, 8), np.float32)},
}
# Without a classifier.
HEADS: dict[str, dict[str, Any]] = {
    "projection head": HEADLESS | PROJECTION,
    "children": under("0.", {n: a for n, a in CHILDREN.items() if n[0] != "9"}) | {"1.4.weight": np.ones((2, 8), np.float32)},
    "classifier of another name": HEADLESS | {"classifier.weight": np.ones((3, 8), np.float32)},
    "moco": under("module.encoder_q.", HEADLESS | PROJECTION) | under("module.encoder_k.", OTHER | PROJECTION),
    "simclr": under("backbone.", HEADLESS) | {"projector.0.weight": np.ones((8, 8), np.float32)},
}


def torch_file(path: Path, saved: dict[str, Any]) -> Path:
    storages: dict[str, np.ndarray] = {}

    def described(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: described(item) for name, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        key = str(len(storages))
        storages[key] = value
        strides = tuple(stride // value.itemsize for stride in np.ascontiguousarray(value).strides) if value.ndim else ()
        return Tensor(key, value.size, value.shape, strides, kind={"float32": "FloatStorage", "int64": "LongStorage"}[value.dtype.name])

    return write_zip(path, described(saved), storages)


def options(line: str) -> dict[str, Any]:
    """Arguments of ``load_pretrained`` for a line of options."""
    words = shlex.split(line)
    given: dict[str, Any] = {"no_head": True} if "--no-head" in words else {}
    return given | {word[2:]: words[i + 1] for i, word in enumerate(words) if word in ("--key", "--prefix")}


def exported(weights: Pretrained, tmp_path: Path) -> Tensors:
    saving.export(weights, "torchvision", tmp_path / "out.safetensors", prefix="")
    return stored(tmp_path / "out.safetensors")


def test_wrapped_networks_are_imported_or_rejected_with_their_options(tmp_path: Path) -> None:
    assert len(ALONE) + len(ASKED) + len(HEADS) >= 30
    for case, saved in ALONE.items():
        weights = load_pretrained(torch_file(tmp_path / "x.pth", saved))
        identical(NET, exported(weights, tmp_path))
        beside = [note for note in weights.notes if note.startswith("also holds")]
        assert bool(beside) == ("beside" in case or "ema " in case), case
        if "ema " in case:
            averaged = load_pretrained(tmp_path / "x.pth", **options(beside[0]))
            identical(OTHER, exported(averaged, tmp_path))
    for case, saved in (ASKED | HEADS).items():
        with pytest.raises(UserError) as caught:
            load_pretrained(torch_file(tmp_path / "x.pth", saved))
        line = next(line for line in str(caught.value).split("\n")[1:] if "--" in line)
        weights = load_pretrained(tmp_path / "x.pth", **options(line))
        expected = NET if case in ASKED else HEADLESS
        actual = exported(weights, tmp_path)
        identical(expected, {name: actual[name] for name in expected})
        assert case in ASKED or weights.architecture.num_classes == 0, case


def test_options_that_do_not_exist_are_answered_with_those_that_do(tmp_path: Path) -> None:
    file = torch_file(tmp_path / "x.pth", {"state_dict": NET, "state_dict_ema": OTHER})
    for wrong in ({"key": "ema"}, {"prefix": "model."}):
        with pytest.raises(UserError, match=r"has no such --key or --prefix, but:\n--key state_dict\n--key state_dict_ema"):
            load_pretrained(file, **wrong)
    with pytest.raises(UserError, match="but encoder.weight"):
        load_pretrained(torch_file(tmp_path / "x.pth", {"encoder.weight": ONES}))


def test_what_names_and_shapes_do_not_state_is_asked_for_or_listed(tmp_path: Path) -> None:
    small = {"stem": "PooledSmallImageStem"}
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (dict(kernel=3), {}, r"--stem SmallImageStem, or PooledSmallImageStem.*\n--mean and --std, 3 of each"),
        (dict(kernel=3), {"view": half}, "--stem"),
        (dict(kernel=3), {"parts": small}, "--mean and --std"),
        (dict(channels=1), {}, "--mean and --std, 1 of each"),
        (dict(channels=2, bottleneck=True), {"view": {"mean": (0.5, 0.5)}}, "--mean and --std, 2 of each"),
        (dict(projected=False), {}, r"--shortcut \"ZeroPad\(resize='pad-both'\)\", A \(all behind x\) or none"),
    ]
    for fields, given, question in cases:
        file = torch_file(tmp_path / "x.pth", filled(shapes((1, 1), (4, 8), **fields)))
        with pytest.raises(UserError, match=question):
            load_pretrained(file, **given)
    pooled = load_pretrained(torch_file(tmp_path / "x.pth", filled(shapes(kernel=3))), parts=small, view=half)
    assert (pooled.card.view.resize, pooled.card.view.crop) == (0, 0)
    assert pooled.architecture.stem is PooledSmallImageStem
    gray = load_pretrained(torch_file(tmp_path / "x.pth", filled(shapes(channels=1))), view={"mean": (0.5,), "std": (0.25,)})
    assert gray.card.view.deviation == (0.25,)
    plain = load_pretrained(torch_file(tmp_path / "x.pth", filled(shapes(bottleneck=True))))
    assumed = [re.search(r"\(else: (.*)\)", note)[1] for note in plain.notes if note.startswith("assumed")]  # type: ignore[index]
    assert [text.split()[0] for text in assumed] == ["--stem", "--branch", "--mean", "--norm", "--resize,"]
    other = {"branch": "Bottleneck", "norm": "BatchNorm(epsilon=0.001)"}
    changed = load_pretrained(tmp_path / "x.pth", parts=other, view=half | {"crop": 192})
    assert [note for note in changed.notes if "assumed" in note] == [plain.notes[1]]
    assert "stride_at" not in str(changed.architecture.branch)
