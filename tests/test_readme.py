"""The README's code and commands run in an empty folder; its tables and pictures are the committed results."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from resnet_jax import cli, models
from resnet_jax import weights as weights_lib
from resnet_jax.models import components, norms, orders, shortcuts
from resnet_jax.studies import report
from resnet_jax.weights import saving
from resnet_jax.weights.card import IMAGENET_VIEW

from conftest import ROOT

README = (ROOT / "README.md").read_text()
SHELL = [
    line.partition(" #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()
]
INLINE = re.findall(r"`((?:resnet-jax|python|sbatch|launch/\S+|kubectl) [^`]+)`", README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: weights in torchvision's names, and the README's files."""
    folder = tmp_path_factory.mktemp("readme")
    architecture = models.architecture("resnet18")
    _, params, batch_stats = jax.jit(architecture.init)(jax.random.key(0))
    card = weights_lib.Card(architecture=architecture, view=IMAGENET_VIEW, source="drawn")
    saving.export(weights_lib.Pretrained(card, params, batch_stats), "torchvision", folder / "resnet18.safetensors")
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        if named := re.match(r"# (\w+\.py)\n", block):
            (folder / named[1]).write_text(block)
    return folder


@pytest.mark.slow
def test_readme_python_runs(folder: Path) -> None:
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    with contextlib.chdir(folder):
        for block in blocks:
            exec(block, names)
    assert names["logits"].shape == (2, 10)
    assert list(names["maps"]) == ["stem", "stage1", "stage2", "stage3"]
    assert "resnext50_32x4d" in names["names"]
    assert names["pretrained"].card.view == IMAGENET_VIEW
    assert names["network"](jnp.zeros((1, 64, 64, 3))).shape == (1, 1000)
    assert [variant.name for variant in names["compare"]()] == ["ZeroPad", "Half"]


@pytest.mark.slow
def test_readme_commands_run(folder: Path) -> None:
    """In their order, with an empty home; launchers and installation have tests of their own."""
    bin_dir = Path(sys.executable).parent
    environment = os.environ | {"HOME": str(folder), "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    environment.pop("TFDS_DATA_DIR", None)
    launched = [line for line in INLINE if line.startswith("python launch/local.py")]
    assert len(launched) == 1
    parsed = [f"{line} --help" for line in INLINE if line.startswith("resnet-jax") and shlex.split(line)[1] in cli.COMMANDS]
    assert len(SHELL) >= 10
    for line in [*SHELL, *parsed, *launched]:
        if line.split()[0] not in ("make", "pip"):
            line = line.replace("launch/", f"{ROOT}/launch/")
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (folder / "runs/compare/report.html").is_file()
    assert (folder / "runs/two/result.json").is_file()


def test_readme_names_exist() -> None:
    """Targets of make, commands, files, recipes and parts."""
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", "\n".join([*SHELL, README])):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"resnet-jax (\w+)", README):
        assert command in {name.split()[0] for name in cli.COMMANDS}
    for link in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"launch/\w+\.\w+", README):
        assert (ROOT / link).exists(), link
    for file, function in re.findall(r"(?<![\w.])(\w+):(\w+) --", README):
        if file != "half":
            assert callable(components.load(f"{ROOT}/experiments/{file}.py:{function}"))
    for module, kind in ((shortcuts, "shortcut"), (orders, "order"), (norms, "norm")):
        row = re.search(rf"^\| {kind} \|.*", README, re.MULTILINE)
        assert row
        assert all(hasattr(module, name) for name in re.findall(r"`(\w+)`", row[0]))


def test_readme_numbers_are_those_of_the_committed_results() -> None:
    """`make readme` fills tables and headline results and draws the picture; no number is typed."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    assert generate.filled(README) == README, "run `make readme` and read the difference"
    assert report.filled(README, ROOT)[1] == 0
    drawn, committed = generate.draw_degradation(), (ROOT / "docs/img/degradation.svg").read_text()
    # Paths depend on matplotlib's version.
    assert re.findall(r">([^<>]*%[^<>]*)<", drawn) == re.findall(r">([^<>]*%[^<>]*)<", committed)
    assert len(re.findall(r"\d ± \d", committed)) == 4


def test_readme_is_short() -> None:
    assert README.count("\n") <= 200
    assert len(README.encode()) <= 12_000
    prose = re.sub(r"```.*?```|<!--.*?-->|^\|.*?$|^#.*?$", "", README, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\n|\n- ", prose):
        for sentence in re.split(r"(?<=[.:;!?])\s", " ".join(paragraph.split())):
            assert len(sentence.split()) <= 30, sentence


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*.json")), ids=lambda p: p.name)
def test_committed_results_state_their_origin(path: Path) -> None:
    """Device, versions, commit and command; none of a machine's own folders."""
    text = json.loads(path.read_text())
    for where in [text["common"] | each for each in text["results"]] if text.get("kind") == "study" else [text]:
        assert where.get("device") or where.get("devices")
        assert {"jax", "flax", "python"} <= where["versions"].keys()
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", where["commit"])
    assert text["command"].startswith("resnet-jax ")
    assert not re.search(r"/(tmp|home|work|root|Users)/", path.read_text())
