"""The README's Python runs as it stands there, and its commands exist."""

import re

import jax
import jax.numpy as jnp
from conftest import ROOT

from resnet_jax import cli, models, references

README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs() -> None:
    names: dict = {"images": jnp.zeros((2, 32, 32, 3)), "jax": jax, "jnp": jnp}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (2, 10)
    assert list(names["maps"]) == ["stem", "stage1", "stage2", "stage3"]


def test_the_counts_of_the_readme_are_those_of_the_paper_and_of_torchvision() -> None:
    """papers.md A1: 3.8580e9 with the stride in the 1x1 (the paper), 4.0892e9 in the 3x3."""
    for stride_in_1x1, rounded in ((True, 3.8580), (False, 4.0892)):
        found = models.count(models.imagenet_architecture(50, stride_in_1x1=stride_in_1x1)).multiply_adds
        assert round(found / 1e9, 4) == rounded
        assert str(found) in README


def test_the_commands_and_experiments_of_the_readme_exist() -> None:
    for command in re.findall(r"^resnet-jax (\w+)", README, flags=re.MULTILINE) + re.findall(r"^\| `(\w+)[ `]", README, flags=re.MULTILINE):
        assert command in cli.COMMANDS
    for reference in re.findall(r"experiments/\w+\.py:\w+", README):
        assert callable(references.load(f"{ROOT}/{reference}"))
