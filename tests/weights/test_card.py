"""Cards of weight files: round trips and hostile cards."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from others import written
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.weights import Card, View
from resnet_jax.weights import card as card_lib

CARD = Card(
    architecture=variant("resnet50_v15", num_classes=7),
    view=View(mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.25, 0.25), resize=235, crop=224, interpolation="bicubic"),
    source="weights.pth",
    sha256="0123",
    convention="torchvision",
    data="imagenet2012",
    claimed_error=23.85,
    prefix="module.",
    dtypes={"module.fc.weight": "float16"},
    counters={"bn1.num_batches_tracked": 5.0},
)
SMALL = dataclasses.replace(CARD, architecture=variant("cifar_resnet8"))


def test_card_is_read_as_written() -> None:
    for fields in (
        {},
        {"claimed_error": None, "data": "", "prefix": "", "counters": {"": 64000.0}},
        {"architecture": variant("cifar_stochastic110", dtype="bfloat16", norm="BatchNorm(group_size=64)")},
        {"architecture": variant("cifar_densenet_bc100_12", norm="FrozenBatchNorm")},
        {"view": View(mean=(((0.5, 0.25, 0.125), (0.5, 0.25, 1.0)),), deviation=(1.0, 1.0, 1.0))},
    ):
        card = dataclasses.replace(CARD, **fields)
        assert "\n" not in card.text()
        assert card_lib.read(card.text()) == card
    np.testing.assert_array_equal(CARD.constants()[0], np.float32([0.5, 0.25, 0.125]), strict=True)
    text = changed(architecture={"shortcut": "mine.py:Half"})
    with pytest.raises(UserError, match="mine.py:Half: a file cannot bring code along, so give the network itself"):
        card_lib.read(text)
    assert card_lib.read(text, SMALL.architecture) == SMALL


def changed(**fields: Any) -> str:
    """The card of a small network with other entries; those of dictionaries are merged."""
    plain = json.loads(SMALL.text())
    for name, value in fields.items():
        plain[name] = plain[name] | value if isinstance(value, dict) and isinstance(plain.get(name), dict) else value
    return json.dumps(plain)


HOSTILE = {
    "nested": ("[" * 100_000, "its card is corrupt"),
    "a nested mean": (changed(view={"mean": "here"}).replace('"here"', "[" * 70 + "1" + "]" * 70), "its card is"),
    "deviation zero": (changed(view={"deviation": [1, 0, 1]}), "std: 3 above 0 (--std)"),
    "a huge crop": (changed(view={"crop": 10**9}), "view.crop must be in [0, 65536), got"),
    "a prefix of a list": (changed(prefix=["module."]), "prefix"),
    "counters of text": (changed(counters={"a": "b"}), "its card is"),
    "an unknown field": (changed(surprise=1), "its card is corrupt"),
    "a system call": (changed(architecture={"branch": "os:system(command='touch executed')"}), "a file cannot bring code along"),
    "an import": (changed(architecture={"stem": "evil.py:Stem"}), "a file cannot bring code along"),
    "a call": (changed(architecture={"branch": "Basic(dropout=__import__('os').getcwd())"}), "cannot be read"),
    "brackets": (changed(architecture={"branch": "Branch(kernels=" + "(" * 50_000}), "characters long"),
    "huge stages": (changed(architecture={"stages": [10**30, 1, 1]}), "describes no network: model.stages must be in"),
}


def test_hostile_cards_are_rejected_and_their_code_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\n\n\nclass Stem:\n    pass\n")
    for name, (text, reason) in HOSTILE.items():
        file = written(tmp_path / "x.safetensors", {"params/head/linear/bias": np.ones(10, np.float32)}, {"resnet_jax": text})
        for read in (lambda text=text: card_lib.read(text), lambda file=file: weights_lib.load_pretrained(file)):
            with pytest.raises(UserError) as caught:
                read()
            assert reason in str(caught.value), name
            assert len(str(caught.value)) < 1000, name
    assert not (tmp_path / "executed").exists()
