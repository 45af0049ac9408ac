"""Devices that are not there, and a machine that has no use for what compiles for them."""

import glob
import importlib.util
import os
import subprocess
import sys

import pytest

from resnet_jax.errors import UserError
from resnet_jax.plan import offline, targets


@pytest.mark.parametrize(("name", "extra"), [("tpu:v5e:2x2", "plan-tpu"), ("gpu:h100", "plan-gpu")])
def test_a_missing_extra_is_named(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'resnet-jax-lab\[{extra}\]'"):
        offline.require(targets.parse(name))


def test_a_package_whose_parent_is_missing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert not offline.installed("gpu")


def test_the_extras_are_declared() -> None:
    """What the error says can be installed."""
    from conftest import ROOT

    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra, _ in offline.EXTRAS.values())


def test_the_environment_keeps_what_it_does_not_set() -> None:
    found = offline.environment({"PATH": "/bin", "XLA_FLAGS": "--xla_a=1", "JAX_PLATFORMS": "tpu"})
    assert found["PATH"] == "/bin"
    assert found["XLA_FLAGS"].split() == ["--xla_a=1", "--xla_gpu_autotune_level=0"]
    assert found["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("before", "plugin", "there", "after"),
    [
        ({}, True, False, "cpu"),
        ({}, True, True, None),
        ({}, False, False, None),
        ({"JAX_PLATFORMS": "cuda"}, True, False, "cuda"),
    ],
)
def test_an_extra_without_a_device_is_not_asked(
    before: dict[str, str], plugin: bool, there: bool, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "installed", lambda platform: plugin)
    monkeypatch.setattr(glob, "glob", lambda pattern: [pattern] * there)
    variables = dict(before)
    offline.hide_missing_devices(variables)
    assert variables.get("JAX_PLATFORMS") == after


@pytest.mark.parametrize("name", ["tpu:v5e:2x2", "tpu:v5e:16x16", "tpu:v6e:16x16", "tpu:v5p:8x16x16", "gpu:h100", "gpu:h100:8", "gpu:a100"])
@pytest.mark.slow
def test_devices_of_a_target(name: str) -> None:
    """In a process of its own: jax has started here."""
    target = targets.parse(name)
    needs(target.device.platform)
    code = f"from resnet_jax.plan import offline, targets; found = offline.devices(targets.parse({name!r})); print(len(found))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline.environment(os.environ), capture_output=True, text=True, timeout=400, check=True
    )
    assert done.stdout.split()[-1] == str(target.chips)


def needs(platform: str) -> None:
    extra, module = offline.EXTRAS[platform]
    if not offline.installed(platform):
        pytest.skip(f"{module} is not installed: pip install 'resnet-jax-lab[{extra}]'")
