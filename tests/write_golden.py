"""Writes the resolved configuration of every experiment and study to tests/golden: what must not drift unnoticed. Run by `make golden`."""

import json
from pathlib import Path
from typing import Any

from resnet_jax.models import components
from resnet_jax.training import config
from resnet_jax.training.config import Experiment

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
# A file of its own for every experiment; elsewhere one that is a cell of a study stands in the study's file.
ONE_BY_ONE = ("degradation", "he2015_cifar10", "he2015_imagenet")

Found = Experiment | tuple[Experiment, ...]


def public_experiments(path: Path) -> dict[str, Found]:
    """What the public functions of an experiment file return, by name."""
    return {name: components.load(f"{path}:{name}")() for name in components.public_names(components.load_file(path))}


def resolved_experiments() -> dict[str, str]:
    """File name under tests/golden -> text, for every function in experiments/."""
    texts = {}
    for path in sorted((ROOT / "experiments").glob("*.py")):
        found = public_experiments(path)
        cells = {cell for study in found.values() if isinstance(study, tuple) for cell in study}
        for name, value in found.items():
            if isinstance(value, tuple):
                written = study(value)
            elif path.stem in ONE_BY_ONE or value not in cells:
                written = config.resolve(value)
            else:
                continue
            texts[f"{path.stem}.{name}.json"] = json.dumps(written, indent=1) + "\n"
    return texts


def study(cells: tuple[Experiment, ...]) -> dict[str, Any]:
    """The first cell in full, of every other what differs from it."""
    first, *others = map(config.resolve, cells)
    return {"first": first, "others": [changed(first, other) for other in others]}


def changed(first: Any, other: Any) -> Any:
    """The parts of ``other`` that differ from ``first``, nested as it is."""
    if not (isinstance(first, dict) and isinstance(other, dict) and first.keys() == other.keys()):
        return other
    return {key: changed(first[key], other[key]) for key in other if first[key] != other[key]}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    written = resolved_experiments()
    for stale in {path.name for path in GOLDEN.glob("*.json")} - written.keys():
        (GOLDEN / stale).unlink()
    for file, text in written.items():
        (GOLDEN / file).write_text(text)
