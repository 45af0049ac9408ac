"""One self-contained HTML page over a set of runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from resnet_jax.studies import figures, study
from resnet_jax.training.workdir import Workdir, write_text


def write(folders: Sequence[Path], page: Path) -> None:
    """Writes ``page``: the table of ``study.summarise``, the training curves, every run with its circumstances. It needs no network."""
    runs = [_run(folder, page.parent) for folder in folders]
    curves = {group.name: [Workdir(folder).records() for folder in group.folders] for group in study.groups(folders)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_jax.studies", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        rows=study.summarise(folders), curves=figures.training_curves(curves), runs=runs, environment=_environment(runs)
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, html)


def _run(folder: Path, base: Path) -> dict[str, Any]:
    workdir = Workdir(folder)
    text = workdir.read_experiment_file()
    records = workdir.records()
    return {
        "name": text["experiment"]["name"],
        "seed": text["seed"],
        "folder": folder.relative_to(base).as_posix() if folder.is_relative_to(base) else folder.as_posix(),
        "fingerprint": text["fingerprint"][:12],
        "steps": f"{records[-1]['step'] if records else 0} of {text['experiment']['steps']}",
        "result": workdir.result(),
        "experiment": json.dumps(text["experiment"], indent=2),
    }


def _environment(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the finished runs ran on; several values where they differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        if run["result"]:
            result = run["result"]
            found.setdefault("commit", set()).add(result["commit"] or "not run from a checkout")
            device = result["device"]
            found.setdefault("device", set()).add(
                f"{device['count']} x {device['kind']} ({device['backend']}), {device['cores']} host cores"
            )
            found.setdefault("versions", set()).add(", ".join(f"{k} {v}" for k, v in result["versions"].items()))
    return [(name, "; ".join(sorted(values))) for name, values in found.items()]
