"""How the house is built: what stays out, which way imports point, how large a file may grow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*(ROOT / "resnet_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py"), *(ROOT / "launch").glob("*.py")])
# From the bottom up; a layer may import those before it. Command line and doctor stand on top, ``BELOW`` below everything.
LAYERS = ["tensors", "models", "data", "evaluation", "training", "studies", "lab", "plan", "bench"]
BELOW = {"errors", "references", "configured", "attached", "huge_pages"}


def test_the_product_is_where_these_tests_look() -> None:
    assert len(PRODUCT) > 30


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_lifted_nnx_transforms_and_pmap_stay_out(path: Path) -> None:
    """DESIGN: they cost 4 to 30 times the host time per step."""
    banned = {
        "nnx.jit",
        "nnx.grad",
        "nnx.value_and_grad",
        "nnx.scan",
        "nnx.vmap",
        "nnx.pmap",
        "nnx.remat",
        "nnx.Optimizer",
        "jax.pmap",
    }
    tree = ast.parse(path.read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{alias.name}".removeprefix("flax.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert not banned & (used | imported)
    assert not any(name.endswith(".sow") for name in used)


@pytest.mark.parametrize("path", [p for p in PRODUCT if "resnet_jax" in p.parts], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    relative = path.relative_to(ROOT / "resnet_jax")
    layer = relative.parts[0] if len(relative.parts) > 1 else None
    if layer is None and relative.stem in BELOW:
        allowed: set[str] = set()
    elif layer is None or relative.name == "command.py" or relative.parent.name == "commands":
        return
    else:
        allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("resnet_jax."):
                target = name.split(".")[1]
                assert target in allowed | BELOW, f"{relative} imports {name}"
            assert not name.startswith("experiments"), f"{relative} imports {name}"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_file_asks_to_be_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320
    assert path.name != "utils.py"


def test_neither_tensorflow_nor_torch_is_a_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    required = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    names = {re.split(r"[<>=\[;]", name)[0] for name in re.findall(r'"([^"]+)"', required)}
    assert not names & {"tensorflow", "torch", "tensorflow-cpu"}
    assert {"jax", "flax", "optax", "tensorflow-datasets", "orbax-checkpoint"} <= names
