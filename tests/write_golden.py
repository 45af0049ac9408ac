"""Writes the resolved configuration of every experiment to tests/golden: what must not drift unnoticed. Run by `make golden`."""

import json
from pathlib import Path

from resnet_jax import references
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def resolved_experiments() -> dict[str, str]:
    """File name under tests/golden -> text, for every function in experiments/ that returns an experiment."""
    texts = {}
    for path in sorted((ROOT / "experiments").glob("*.py")):
        names = references.public_names(references.load_file(path))
        for name in names:
            found = references.load(f"{path}:{name}")()
            if isinstance(found, Experiment):
                texts[f"{path.stem}.{name}.json"] = json.dumps(resolved.resolve(found), indent=1) + "\n"
    return texts


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    written = resolved_experiments()
    for stale in {path.name for path in GOLDEN.glob("*.json")} - written.keys():
        (GOLDEN / stale).unlink()
    for file, text in written.items():
        (GOLDEN / file).write_text(text)
