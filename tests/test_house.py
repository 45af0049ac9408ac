"""Structure of the package: imports point down, expensive transforms stay out, and dependencies exclude TensorFlow and torch."""

import ast
import re
import tomllib
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "resnet_jax"
PRODUCT = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "experiments").glob("*.py"), *(ROOT / "launch").glob("*.py")])
# From the bottom up; a layer imports those before it.
LAYERS = ["kernels", "models", "data", "evaluation", "training", "studies", "analysis", "cli"]
MODULES = {
    "errors": "kernels",
    "terminal": "kernels",
    "distributed": "kernels",
    "weights": "data",
    "plan": "studies",
    "__init__": "cli",
}
BANNED = {f"nnx.{name}" for name in ("jit", "grad", "value_and_grad", "scan", "vmap", "pmap", "remat", "Optimizer")} | {"jax.pmap"}
# Phrases with a standard term in JAX, Flax or the papers.
REPLACED = re.compile(
    r"\b(way (there|back)|(images'|kernel's|kernels') gradient|(is|are|was|were) (told|asked)|set aside|begins again|anew|contestants?"
    r"|taking turns|true averages|made[ -]up|work folders?|machines that are not there|is not finite|(is|are) none|residual units?"
    r"|dear(er|est)|one an? (block|image|seed)|seal(s|ed)|centred?|labelled"
    r"|(colour|behaviour|neighbour|favour|normalis|initialis|optimis)\w*)\b"
)


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_lifted_nnx_transforms_and_pmap_stay_out() -> None:
    """DESIGN: they cost 4 to 30 times the host time per step."""
    assert len(PRODUCT) > 30
    for path in PRODUCT:
        used = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        used |= {name.removeprefix("flax.") for name in imported(path)}
        assert not BANNED & used, path
        assert not any(name.endswith(".sow") for name in used), path
        assert path.name != "utils.py"


def test_imports_point_downwards() -> None:
    def layer(part: str) -> int:
        return LAYERS.index(MODULES.get(part, part))

    for path in PACKAGE.rglob("*.py"):
        own = layer(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        for name in imported(path):
            assert not name.startswith("experiments"), f"{path} imports {name}"
            if name.startswith("resnet_jax."):
                assert layer(name.split(".")[1]) <= own, f"{path} imports {name}"


def test_files_are_written_in_standard_terms() -> None:
    """The glossary of the writing guide, where a pattern can tell; and docstrings of the package that hide their subject."""
    opening = re.compile(r"(What|Of|How|Whether|Where|Which|Who)\b")
    tests = {path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
    for path in sorted({*PRODUCT, *(ROOT / "benchmarks").glob("*.py"), *tests}):
        text = path.read_text()
        assert not (match := REPLACED.search(text)), f"{path}: {match}"
        documented = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        for node in () if path in tests else documented:
            assert not opening.match(ast.get_docstring(node) or ""), f"{path}: {node}"


def test_neither_tensorflow_nor_torch_is_a_dependency_and_the_core_imports_no_jaxtyping() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core, train = (
        {re.split(r"[<>=\[;]", name)[0] for name in names} for names in (project["dependencies"], project["optional-dependencies"]["train"])
    )
    assert not (core | train) & {"tensorflow", "torch", "tensorflow-cpu"}
    assert {"tensorflow-datasets", "orbax-checkpoint", "tyro"} <= train
    for path in (PACKAGE / "kernels/__init__.py", *(PACKAGE / "models").glob("*.py")):
        assert not any(name.startswith("jaxtyping") for name in imported(path)), path
