"""Code and commands of the README and the guides run; tables and the picture are the committed results."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from resnet_jax import cli, models
from resnet_jax import weights as weights_lib
from resnet_jax.models import components, norms, orders, shortcuts
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
        if line.split()[0] not in ("make", "."):
            line = line.replace("launch/", f"{ROOT}/launch/") + " --steps 20" * (line in launched)
            done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (folder / "runs/compare/report.html").is_file()
    assert (folder / "runs/two/result.json").is_file()


@pytest.fixture(scope="module")
def modules() -> dict:
    """The names that the code of the guide to the modules leaves behind."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/modules.md").read_text(), flags=re.DOTALL):
        exec(block, names)
    return names | {"images": jax.random.normal(jax.random.key(0), (2, 32, 32, 3))}


@pytest.mark.slow
def test_guide_trunk_trains_its_new_layer_and_nothing_else(modules: dict) -> None:
    params, images = modules["weights"], modules["images"]
    assert modules["per_pixel"].shape == (2, 4, 4, 3)  # 32 pixels at stride 8

    @jax.jit
    def step(params: dict, state: Any) -> dict:
        gradients = jax.grad(lambda p: nnx.merge(modules["graphdef"], p, modules["statistics"], copy=True)(images).sum())(params)
        return optax.apply_updates(params, modules["frozen"].update(gradients, state, params)[0])

    after = step(params, modules["state"])
    jax.tree.map(np.testing.assert_array_equal, params["trunk"], after["trunk"])
    moved = np.asarray(params["classify"]["kernel"]) != after["classify"]["kernel"]
    assert moved.mean() > 0.5  # a feature that is zero everywhere moves nothing


@pytest.mark.slow
def test_guide_linen_module_has_the_variables_of_its_trunk(modules: dict) -> None:
    module, images = modules["Classifier"](), modules["images"]
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert variables["params"]["trunk"]["stages"][0][0]["stacked"]["branch"]["convs"][0]["kernel"].shape == (1, 3, 3, 8, 8)
    variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), variables)
    logits, moved = module.apply(variables, images, True, mutable=["batch_stats"])
    assert logits.shape == (2, 3)
    assert moved["batch_stats"].keys() == {"trunk"}


def test_guide_counts_are_those_of_the_paper_and_of_torchvision() -> None:
    """papers.md A1: 3.8580e9 with the stride in the 1x1 (the paper), 4.0892e9 in the 3x3."""
    for stride_in_1x1, rounded in ((True, 3.8580), (False, 4.0892)):
        counted = models.count(models.imagenet_architecture(50, stride_in_1x1=stride_in_1x1)).multiply_adds
        assert round(counted / 1e9, 4) == rounded
        assert str(counted) in (ROOT / "docs/guides/modules.md").read_text()


@pytest.mark.slow
def test_guide_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command of docs/ parses as far as its help, and the help lists each of its options."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").glob("[!_]*/*.md")) + (ROOT / "docs/start.md").read_text()
    pages = pages.replace("\\\n", "")
    lines = re.findall(r"(?<![\w/-])resnet-jax [^`#\n]+", "\n".join(re.findall(r"```sh\n(.*?)```", pages, flags=re.DOTALL)))
    assert len(lines) > 40
    for line in lines:
        words = [word for word in shlex.split(line)[1:] if "half.py:" not in word]
        name = next(n for n in (" ".join(words[:2]), words[0]) if n in cli.COMMANDS)
        options = [word for word in words if word.startswith("--")]
        references = [word for word in words if re.fullmatch(r"\w+:\w+", word)]
        with pytest.raises(SystemExit) as ended:
            cli.main([*name.split(), *references, "--help-all"])
        assert not ended.value.code, line
        text = capsys.readouterr().out
        for option in options:
            assert option in text, f"{option} of {line}"


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


def test_readme_numbers_are_those_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make readme` fills tables and headline results and draws the picture; no number is typed."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    generate = components.load_file(ROOT / "docs/generate.py")
    assert generate.filled(README) == README, "run `make readme` and read the difference"
    drawn, committed = generate.draw_degradation(), (ROOT / "docs/img/degradation.svg").read_text()
    # Paths depend on matplotlib's version.
    assert re.findall(r">([^<>]*%[^<>]*)<", drawn) == re.findall(r">([^<>]*%[^<>]*)<", committed)
    assert len(re.findall(r"\d ± \d", committed)) == 4


def test_site_has_a_drawing_and_a_page_of_each_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    pages = dict(components.load_file(ROOT / "docs/generate.py").shortcut_pages())
    for name in re.findall(r"`(\w+)`", re.search(r"^\| shortcut \|.*", README, re.MULTILINE)[0]):  # pyright: ignore[reportOptionalSubscript]
        ElementTree.fromstring(pages[f"block-{name}.svg"])
        (page,) = re.findall(rf"^\| \[{name}\]\((shortcuts_\w+\.md)\)", pages["shortcuts.md"], re.MULTILINE)
        assert f"## {name}\n" in pages[page]
    assert "| he2016 | Table 1 | constant scaling 0.5, 0.5 | 12.35 | median |" in pages["shortcuts_scaling.md"]


def test_links_exist(tmp_path: Path) -> None:
    links = components.load_file(ROOT / "docs/links.py")
    pages = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "launch/README")]
    assert links.dead_in_markdown([*pages, *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md")]) == []
    (tmp_path / "a.md").write_text("# A title\n[a](#a-title) [b](#b) [c](c.md) [d](https://d)\n```sh\n[e](e.md)\n```\n")
    assert [line.rpartition(" ")[2] for line in links.dead_in_markdown([tmp_path / "a.md"])] == ["#b", "c.md"]
    (tmp_path / "a.html").write_text('<p id="a"><a href="#a">a</a><a href="b.html#a">b</a><a href="b.html#c">c</a><img src="d.png"></p>')
    (tmp_path / "b.html").write_text('<p id="a">')
    assert links.dead_in_site(tmp_path) == ["a.html: b.html#c", "a.html: d.png"]


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
