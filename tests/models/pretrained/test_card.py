"""What is said of weights, written into a file and read back; and files that say what nobody should believe."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.models import Card, StochasticDepth, View
from resnet_jax.models.names import variant
from resnet_jax.models.pretrained import card as card_lib

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


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"claimed_error": None, "data": "", "prefix": "", "counters": {"": 64000.0}},
        {"architecture": variant("cifar_stochastic110", dtype="bfloat16", norm="BatchNorm(group_size=64)")},
        {"architecture": variant("resnet18", stochastic_depth=StochasticDepth(survival=0.8, drops="image", scaled="training"))},
        {"architecture": variant("cifar_densenet_bc100_12", norm="FrozenBatchNorm")},
        {"view": View(mean=(((0.5, 0.25, 0.125), (0.5, 0.25, 1.0)),), deviation=(1.0, 1.0, 1.0))},
    ],
)
def test_a_card_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    card = dataclasses.replace(CARD, **fields)
    text = card.text()
    assert "\n" not in text
    assert card_lib.read(text) == card


def test_constants_are_arrays() -> None:
    mean, deviation = CARD.constants()
    np.testing.assert_array_equal(mean, np.float32([0.5, 0.25, 0.125]))
    assert (mean.dtype, deviation.dtype) == (np.float32, np.float32)


def test_what_others_have_no_place_for_travels_by_itself() -> None:
    other = Card(architecture=CARD.architecture, view=card_lib.IMAGENET_VIEW, source="exported", convention="torchvision")
    found = other.as_seen(CARD.seen())
    assert (found.view, found.data, found.claimed_error) == (CARD.view, CARD.data, CARD.claimed_error)
    assert dataclasses.replace(found, view=other.view, data="", claimed_error=None) == other


def test_some_fields_of_the_view_are_changed() -> None:
    assert CARD.viewed({}) == CARD
    assert CARD.viewed({"mean": [1, 2, 3], "crop": 3}).view == dataclasses.replace(CARD.view, mean=(1, 2, 3), crop=3)
    with pytest.raises(UserError, match="view has no field 'size'"):
        CARD.viewed({"size": 3})


def test_a_network_that_is_given_replaces_that_of_the_card(tmp_path: Path) -> None:
    """Which may have a part of somebody's own."""
    text = changed(architecture={"shortcut": f"{tmp_path}/mine.py:Half"})
    with pytest.raises(UserError, match="mine.py:Half: a file cannot bring code along, so give the network itself"):
        card_lib.read(text)
    assert card_lib.read(text, SMALL.architecture) == SMALL


def changed(**fields: Any) -> str:
    """The card of a small network with other entries; those of dictionaries are merged."""
    plain = json.loads(SMALL.text())
    for name, value in fields.items():
        plain[name] = plain[name] | value if isinstance(value, dict) and isinstance(plain.get(name), dict) else value
    return json.dumps(plain)


NESTED = "[" * 900 + "1" + "]" * 900
HOSTILE = {
    "nothing": "",
    "no JSON": "{",
    "a number": "3",
    "a list": "[1, 2]",
    "null": "null",
    "empty": "{}",
    "nested too deep": "[" * 100_000,
    "nested deep": changed(view={"mean": "here"}).replace('"here"', NESTED),
    "nested counters": changed(counters="here").replace('"here"', NESTED),
    "long number": changed(num="here").replace('"here"', "9" * 5000),
    "no view": changed(view=None),
    "a view that is a list": changed(view=[1]),
    "an unknown field": changed(surprise=1),
    "an unknown field of the view": changed(view={"surprise": 1}),
    "mean NaN": changed(view={"mean": [0.5, float("nan"), 0.5]}),
    "mean infinite": changed(view={"mean": [0.5, float("inf"), 0.5]}),
    "mean of texts": changed(view={"mean": ["a", "b", "c"]}),
    "mean a text": changed(view={"mean": "abc"}),
    "mean a number": changed(view={"mean": 0.5}),
    "mean null": changed(view={"mean": None}),
    "mean too short": changed(view={"mean": [0.5, 0.5]}),
    "mean twice too long": changed(view={"mean": [0.5] * 6}),
    "mean ragged": changed(view={"mean": [[0.5, 0.5, 0.5], [0.5]]}),
    "mean without pixels": changed(view={"mean": [[[]]]}),
    "mean a dictionary": changed(view={"mean": {"a": 1}}),
    "mean larger than any float": changed(view={"mean": [10**400, 1, 1]}),
    "deviation 0": changed(view={"deviation": [1, 0, 1]}),
    "deviation negative": changed(view={"deviation": [1, -1, 1]}),
    "deviation NaN": changed(view={"deviation": [1, float("nan"), 1]}),
    "deviation too long": changed(view={"deviation": [1, 1, 1, 1]}),
    "deviation empty": changed(view={"deviation": []}),
    "crop negative": changed(view={"crop": -224}),
    "crop huge": changed(view={"crop": 10**9}),
    "crop half": changed(view={"crop": 22.4}),
    "resize a text": changed(view={"resize": "256"}),
    "interpolation": changed(view={"interpolation": "lanczos"}),
    "interpolation a list": changed(view={"interpolation": ["bilinear"]}),
    "claimed NaN": changed(claimed_error=float("nan")),
    "claimed negative": changed(claimed_error=-1),
    "claimed a text": changed(claimed_error="8"),
    "source a number": changed(source=3),
    "prefix a list": changed(prefix=["module."]),
    "counters a list": changed(counters=[1]),
    "counters of texts": changed(counters={"a": "b"}),
    "counters NaN": changed(counters={"a": float("nan")}),
    "dtypes a text": changed(dtypes="float32"),
    "dtypes of numbers": changed(dtypes={"a": 3}),
    "network a text": changed(architecture="resnet50"),
    "network empty": json.dumps(json.loads(SMALL.text()) | {"architecture": {}}),
    "network without": json.dumps({k: v for k, v in json.loads(SMALL.text()).items() if k != "architecture"}),
    "unknown field of the network": changed(architecture={"build": 1}),
    "system": changed(architecture={"shortcut": "os:system"}),
    "system called": changed(architecture={"branch": "os:system(command='touch MARKER')"}),
    "a file": changed(architecture={"stem": "MARKER.py:Stem"}),
    "a file for an order": changed(architecture={"order": "MARKER.py:Stem"}),
    "a file's norm": changed(architecture={"norm": "MARKER.py:Stem()"}),
    "a file's transition": changed(architecture={"transition": "./MARKER.py:Stem"}),
    "a call": changed(architecture={"branch": "Basic(dropout=__import__('os').getcwd())"}),
    "brackets": changed(architecture={"branch": "Branch(kernels=" + "(" * 50_000}),
    "brackets that fit": changed(architecture={"branch": "Branch(kernels=" + "(" * 250}),
    "a power": changed(architecture={"branch": "Branch(kernels=9**9**9**9)"}),
    "many kernels": changed(architecture={"branch": f"Branch(kernels=({'1,' * 100_000}))"}),
    "unknown part": changed(architecture={"branch": "Basik"}),
    "part null": changed(architecture={"branch": None}),
    "part a number": changed(architecture={"shortcut": 5}),
    "part a list": changed(architecture={"norm": ["BatchNorm"]}),
    "part a dictionary": changed(architecture={"stem": {"a": 1}}),
    "stages of texts": changed(architecture={"stages": ["1", "1", "1"]}),
    "stages a number": changed(architecture={"stages": 3}),
    "stages negative": changed(architecture={"stages": [1, -1, 1]}),
    "stages half": changed(architecture={"stages": [1, 0.5, 1]}),
    "stages true": changed(architecture={"stages": [True, 1, 1]}),
    "stages huge": changed(architecture={"stages": [10**30, 1, 1]}),
    "stages many": changed(architecture={"stages": [1] * 100_000, "features": [1] * 100_000}),
    "stages a dictionary": changed(architecture={"stages": {}}),
    "features huge": changed(architecture={"features": [10**30, 1, 1]}),
    "features negative": changed(architecture={"features": [16, -32, 64]}),
    "images without channels": changed(architecture={"input_shape": [32, 32]}),
    "images of none": changed(architecture={"input_shape": []}),
    "images a dictionary": changed(architecture={"input_shape": {}}),
    "images negative": changed(architecture={"input_shape": [32, 32, -3]}),
    "classes a text": changed(architecture={"num_classes": "10"}),
    "classes negative": changed(architecture={"num_classes": -10}),
    "stem negative": changed(architecture={"stem_features": -1}),
    "dtype": changed(architecture={"dtype": "object"}),
    "dtype a list": changed(architecture={"dtype": []}),
    "dtype a dictionary": changed(architecture={"dtype": {}}),
    "stochastic depth a number": changed(architecture={"stochastic_depth": 0.5}),
    "stochastic depth unknown": changed(architecture={"stochastic_depth": {"a": 1}}),
    "stochastic depth a text": changed(architecture={"stochastic_depth": {"survival": "0.5"}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_the_users_error(name: str) -> None:
    begun = time.process_time()
    with pytest.raises(UserError) as caught:
        card_lib.read(HOSTILE[name])
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begun < 20


def test_without_these_tests_checks_of_types_it_is_the_users_error_too(tmp_path: Path) -> None:
    """These tests check every annotation, which catches what users would meet: once more in a process that does not. And the whole way,
    from a file; whatever a card names is never imported, nor is what it asks for built at length.
    """
    (tmp_path / "MARKER.py").write_text("open('imported', 'w')\n\n\nclass Stem:\n    pass\n")
    (tmp_path / "cards.json").write_text(json.dumps(HOSTILE))
    program = """
import json, time
import numpy as np
from pathlib import Path
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained import card as card_lib
from resnet_jax.tensors import files

for name, text in json.loads(Path("cards.json").read_text()).items():
    begun = time.process_time()
    files.save(Path("x.safetensors"), {"params/head/linear/bias": np.ones(10, np.float32)}, {"resnet_jax": text})
    for read in (lambda: card_lib.read(text), lambda: models.load_pretrained(Path("x.safetensors"))):
        try:
            read()
        except UserError as error:
            if len(str(error)) > 1000 or time.process_time() - begun > 20:
                print(name, "takes long")
        except BaseException as error:
            print(name, "raises", type(error).__name__, str(error)[:200])
        else:
            print(name, "is believed")
for view in ("{", "3", "[]", "{}", '{"view": 3}', '{"view": {"mean": [1]}, "data": "", "claimed_error": null}', "[" * 100000):
    files.save(Path("y.safetensors"), {"a": np.ones(1, np.float32)}, {"resnet_jax_view": view})
    card = models.Card(architecture=models.architecture("cifar_resnet8"), view=card_lib.IMAGENET_VIEW, source="")
    try:
        card.as_seen(view)
    except UserError:
        continue
    print(view[:50], "is believed")
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.stdout == "", done.stdout
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"view": 3}', '{"view": {"mean": [1]}}', "[" * 100_000])
def test_a_damaged_view_is_the_users_error(text: str) -> None:
    with pytest.raises(UserError, match="what the file says of its images is damaged"):
        CARD.as_seen(text)


@pytest.mark.parametrize("view", [{"mean": [1, 2]}, {"deviation": [0, 1, 1]}])
def test_a_view_of_an_exported_file_is_checked(view: dict[str, Any]) -> None:
    seen = json.loads(CARD.seen())
    seen["view"] |= view
    with pytest.raises(UserError, match="makes no sense"):
        CARD.as_seen(json.dumps(seen))
