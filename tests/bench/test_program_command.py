"""The program that XLA makes for a device that is not there: its bounds, and what is refused before anything is compiled."""

import json

import pytest

from resnet_jax import cli
from resnet_jax.plan import elsewhere, offline


@pytest.fixture(scope="module")
def compilers() -> None:
    extra, module = offline.EXTRAS["gpu"]
    if not offline.installed("gpu"):
        pytest.skip(f"{module} is not installed: pip install 'resnet-jax-lab[{extra}]'")


def programs(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    cli.main(["bench", "program", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.slow
def test_a_step_of_resnet50_for_an_h100_stays_within_its_bounds(compilers: None, capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16, 256 images: a plain Linen network has 1,066 kernels that move 391 MB an image (jax 0.12.0.1)."""
    (found,) = programs(capsys, "--networks", "resnet50")
    assert found["kernels"] <= 960
    assert found["bytes_per_image"] <= 360e6
    assert found["float32_activations"] == 0


@pytest.mark.slow
def test_a_step_of_cifar_networks_for_an_h100_stays_within_its_bounds(compilers: None, capsys: pytest.CaptureFixture[str]) -> None:
    """128 images, of 100 steps in one call, as they are trained: a plain Linen network has 393 kernels at 20 layers."""
    rows = programs(capsys, "--networks", "cifar_resnet20", "cifar_resnet110")
    for depth, found in zip((20, 110), rows, strict=True):
        assert found["steps"] == 100
        assert found["kernels"] <= 320 * depth / 20
        assert found["float32_activations"] == 0


@pytest.mark.slow
def test_the_written_derivative_of_batch_norm_saves_kernels(compilers: None, capsys: pytest.CaptureFixture[str]) -> None:
    plain, written = programs(capsys, "--networks", "cifar_resnet20", "--steps", "1", "--normalization", "plain", "explicit")
    assert written["kernels"] < 0.9 * plain["kernels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "resnet51"), "depth 51"),
        (("--target", "gpu:h200x"), "gpu:h200x"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--steps", "-1"), "--steps is -1"),
        (("--networks",), "--networks is empty"),
        (("--normalization", "written"), "written"),
    ],
)
def test_bad_words_are_refused_before_anything_is_compiled(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "ask", lambda *_: pytest.fail("nothing may be compiled"))
    monkeypatch.setattr(offline, "require", lambda target: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "program", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_row_is_shown_for_every_network_target_and_form(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"kernels": 3, "bytes_per_image": 2e6, "float32_activations": 0}
    rows = [
        {
            "network": network,
            "target": "gpu:h100",
            "normalization": form,
            "batch_size": 128,
            "steps": 1,
            "collectives": {},
            "temporary_bytes": 5e6,
        }
        | group
        | {"compile_seconds": 1.0, "by_kind": [group | {"kind": "copy"}], "by_line": [group | {"line": "norms.py:1"}]}
        for network in ("resnet18", "resnet50")
        for form in ("plain", "explicit")
    ]
    monkeypatch.setattr(elsewhere, "ask", lambda *_: rows)
    monkeypatch.setattr(offline, "require", lambda target: None)
    cli.main(["bench", "program", "--networks", "resnet18", "resnet50", "--normalization", "plain", "explicit"])
    said = capsys.readouterr().out
    assert said.count("by source line") == 4
    assert "training step, 128 images a device, bfloat16" in said.replace("\n", " ")
