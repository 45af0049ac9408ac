"""Which convolutions a network has, and what a row of them holds."""

import importlib.util

import pytest

from resnet_jax import cli, models
from resnet_jax.bench import layers


def test_resnet20_has_nineteen_convolutions_of_six_kinds() -> None:
    """He et al. 2015, Section 4.2: 6 n + 1 of them at n = 3, the first of the second and third stage at stride 2."""
    found = layers.of(models.architecture("cifar_resnet20"), 128)
    assert {str(layer): times for layer, times in found.items()} == {
        "3x3, 3 to 16, on 32x32": 1,
        "3x3, 16 to 16, on 32x32": 6,
        "3x3/2, 16 to 32, on 32x32": 1,
        "3x3, 32 to 32, on 16x16": 5,
        "3x3/2, 32 to 64, on 16x16": 1,
        "3x3, 64 to 64, on 8x8": 5,
    }


def test_resnext_says_its_groups() -> None:
    found = layers.of(models.architecture("resnext50_32x4d"), 2)
    assert sum(found.values()) == 53
    assert sum(times for layer, times in found.items() if "32 groups" in str(layer)) == 16


def test_a_row_has_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.Architecture(stages=(1,), features=(4,), input_shape=(8, 8, 3))
    first, second = layers.measure(network, 2, 1)
    assert (first["layer"], first["times"], second["times"]) == ("3x3, 3 to 4, on 8x8", 1, 2)
    named = {"forward", "images", "kernel", "kernel_plain"}
    if importlib.util.find_spec("torch"):
        named |= {"torch_forward", "torch_images", "torch_kernel"}
    assert {name for name in first if name.split("_")[0] in ("forward", "images", "kernel", "torch")} == named
    assert all(first[name] > 0 for name in named)


def test_bad_input_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "layers", "--batch-size", "0"])
    assert ended.value.code == 2
    assert "--batch-size 0" in capsys.readouterr().err
