"""``resnet-jax list``, ``summary`` and ``doctor``: networks, recipes and this machine."""

import ast
import dataclasses
import fnmatch
import glob
import os
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import distributed, models
from resnet_jax.cli import options
from resnet_jax.cli.options import AsJson, DataDir
from resnet_jax.data import datasets
from resnet_jax.errors import Positive, UserError
from resnet_jax.models import catalog
from resnet_jax.terminal import Table, show
from resnet_jax.training import run_dir

_DEVICE_FILES = (
    ("an NVIDIA GPU", "/dev/nvidia[0-9]*", "cuda12"),
    ("a TPU", "/dev/accel[0-9]*", "tpu"),
)


def list_(pattern: Positional[str] = "", *, as_json: AsJson = False) -> None:
    """List networks for 'summary' and create_model, and recipes for 'train' and 'study'.

    Args:
      pattern: Part of a name, such as resnet50 or he2015_*:plain*. Up to ten networks are counted.
    """
    names = fnmatch.filter(models.NETWORKS, f"*{pattern}*")
    # Counting traces the network, which takes about a second.
    counted = names if len(names) <= 10 else []
    sizes = {
        name: {"parameters": models.count(models.NETWORKS[name]).parameters} for name in counted
    }
    networks = [
        {
            "name": name,
            **sizes.get(name, {}),
            "paper": catalog.paper(name),
        }
        for name in names
    ]
    recipes = [
        {
            "recipe": f"{name}:{node.name}",
            "command": "train" if ast.unparse(node.returns) == "Experiment" else "study",
            "description": (ast.get_docstring(node) or "").partition("\n")[0],
        }
        for name, file in options.recipes().items()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.returns and not node.name.startswith("_")
        if fnmatch.fnmatchcase(f"{name}:{node.name}", f"*{pattern}*")
    ]
    if not networks and not recipes:
        raise UserError(f"no network and no recipe is called {pattern!r}; resnet-jax list has all")
    tables = [Table.from_rows("", rows) for rows in (networks, recipes) if rows]
    show(as_json, {"networks": networks, "recipes": recipes}, *tables)


def summary(
    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")],
    *,
    model: Annotated[models.Architecture, tyro.conf.arg(name="")],
    depth: Positive | None = None,
    as_json: AsJson = False,
) -> None:
    """Parameters, multiply-adds (the papers' FLOPs, for one image) and projections, by stage.

    Args:
      network: A name of 'resnet-jax list', a family with --depth such as cifar_resnet or
        imagenet_preresnet, or FILE.py:FUNCTION.
      depth: Layers: 6n+2 for the cifar families, 18 to 200 for the imagenet families.
    """
    counts = models.count(model)
    rows = [
        {
            "": stage.name,
            "blocks": stage.num_blocks or None,
            "output": _size(stage.output_shape),
            "parameters": stage.parameters,
            "multiply-adds": stage.multiply_adds,
            "projections": stage.projections or None,
        }
        for stage in counts.stages
    ]
    total = counts.parameters, counts.multiply_adds, counts.projections
    blocks = sum(stage.num_blocks for stage in counts.stages)
    rows.append(dict(zip(rows[0], ("all", blocks, "", *total), strict=True)))
    title = network if depth is None else f"{network} --depth {depth}"
    title += f", one image of {_size(model.input_shape)}"
    show(as_json, dataclasses.asdict(counts), Table.from_rows(title, rows))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def doctor(*, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List versions, devices, processes and data sets. Exits with 1 if there are problems."""
    report = run_dir.describe()
    missing = [name for name, text in report["versions"].items() if text.startswith("not")]
    problems = [f"{name} is missing. Do: pip install {name}" for name in missing]
    processes = "one alone: no --coordinator, JAX_COORDINATOR_ADDRESS, Slurm step or TPU slice"
    try:
        processes = distributed.detected() or processes
    except UserError as error:
        processes = "incomplete"
        problems.append(f"processes would not meet: {error}. Do: set all variables, or none")
    for name, files, extra in _DEVICE_FILES:
        if report["devices"]["backend"] == "cpu" and glob.glob(files):
            remedy = f"pip install -U 'jax[{extra}]'"
            problems.append(f"{name} is attached, and jax uses the CPU. Do: {remedy}")
    data_sets = {}
    for name, folder in datasets.prepared(data_dir).items():
        try:
            info = datasets.describe(name, data_dir)
            examples = ", ".join(f"{count} {split}" for split, count in info.examples.items())
            data_sets[name] = f"{info.version}, {examples}, in {folder}"
        except UserError as error:
            data_sets[name] = f"cannot be used: {error}"
    if not data_sets:
        remedy = "resnet-jax prepare digits (no network needed), resnet-jax prepare cifar10"
        problems.append(f"no data set is prepared. Do: {remedy}")
    report |= {
        "processes": processes,
        "compiled_programs": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "data_dirs": list(map(str, datasets.data_dirs(data_dir))),
        "data_sets": data_sets,
        "problems": problems,
    }
    show(as_json, report, *(f"{n.replace('_', ' ')}: {_text(v)}" for n, v in report.items()))
    if problems:
        raise SystemExit(1)


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name}: {text}" for name, text in value.items()]
    if isinstance(value, list):
        return "".join(f"\n  {text}" for text in value) or "none"
    return str(value)
