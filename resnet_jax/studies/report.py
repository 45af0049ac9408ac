"""A self-contained HTML page about variants, with CSV and JSON beside it."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from resnet_jax import terminal
from resnet_jax.errors import UserError, nearest
from resnet_jax.studies import comparison as comparison_lib
from resnet_jax.studies import figures, findings
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.comparison import Comparison
from resnet_jax.studies.results import Cell, Run
from resnet_jax.terminal import csv_text, plain
from resnet_jax.training.run_dir import Workdir, write_text

_IN_CSV = (
    *(
        "value",
        "best_over_training",
        "selected_on_validation",
        "training_error_percent",
        "training_error_of",
        "diverged_at_step",
    ),
    *("parameters", "seconds", "fingerprint", "state_digest"),
)


def write(
    cells: Sequence[Cell],
    page: Path,
    *,
    study: Mapping[str, Any],
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Writes ``page``, a self-contained HTML file, ``.csv`` (one row per run) and ``.json`` (everything).

    ``study`` has the notes of ``committed.study``. Unverified published numbers are counted, not shown.
    """
    verified = [comparison for comparison in comparisons if comparison.entry.verified]
    runs = [(cell, run) for cell in cells for run in sorted(cell.runs, key=lambda run: run.seed)]
    results = [run.result for _, run in runs if run.result is not None]
    sections = findings.read(run.source for cell in cells for run in cell.runs)
    text = _template().render(
        title=_title(cells, study),
        study=study,
        cells=cells,
        tables=results_lib.tables(cells, _absent(cells, study)),
        papers=comparison_lib.tables(verified),
        comparable=any(row.ours or row.counted is not None or not row.refused for row in verified),
        unverified=len(comparisons) - len(verified),
        errors=figures.error_by_cell(cells, _published(verified)),
        curves=figures.panels(cells),
        laboratory=[
            (section, figures.inline(section.svg, section.title, f"lab{number}"))
            for number, section in enumerate(sections)
        ],
        runs=[
            (
                cell,
                run,
                _relative(run.source, page.parent),
                quote(_relative(run.source, page.parent)),
            )
            for cell, run in runs
        ],
        details=[
            (cell, _values(result["protocol"] for result in cell.results), _experiment(cell))
            for cell in cells
        ],
        environment=_values(
            {
                "commit": result["commit"] or "not run from a checkout",
                "device": "{count} × {kind} ({backend}), {cores} host cores".format(
                    **result["device"]
                ),
                **result["versions"],
            }
            for result in results
        ),
    )
    places = [
        {"variant": cell.name, "seed": run.seed, "source": _relative(run.source, page.parent)}
        for cell, run in runs
    ]
    data = {
        "study": {name: study[name] for name in ("command", "cells", "reduced") if name in study},
        "variants": results_lib.table(cells),
        "comparisons": [comparison_lib.plain(comparison) for comparison in comparisons],
        "results": [
            place | run.result
            for place, (_, run) in zip(places, runs, strict=True)
            if run.result is not None
        ],
        "unfinished": [
            place for place, (_, run) in zip(places, runs, strict=True) if run.result is None
        ],
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    write_text(
        page.with_suffix(".csv"),
        csv_text([place | _row(run) for place, (_, run) in zip(places, runs, strict=True)]),
    )
    write_text(page.with_suffix(".json"), json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def _template() -> jinja2.Template:
    loader, undefined = (
        jinja2.PackageLoader("resnet_jax.studies", "templates"),
        jinja2.StrictUndefined,
    )
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _title(cells: Sequence[Cell], study: Mapping[str, Any]) -> str:
    if named := re.search(r"([\w-]+)\.py:(\w+)", study.get("command", "")):
        return f"{named[1]}, {named[2]}"
    if paper := re.search(r"--paper (\S+)", study.get("command", "")):
        return f"{paper[1]} | ours"
    more = f" and {len(cells) - 3} other variants" if len(cells) > 3 else ""
    return (", ".join(cell.name for cell in cells[:3]) or "No runs") + more


def _absent(cells: Sequence[Cell], study: Mapping[str, Any]) -> list[str]:
    """Returns variants of the study without a run."""
    present = {
        name for cell in cells for name in (cell.name, re.sub(r" \([\da-f]{6}\)$", "", cell.name))
    }
    return [name for name in study.get("cells", ()) if name not in present]


def _published(comparisons: Sequence[Comparison]) -> dict[str, list[float]]:
    """Returns the published errors of the last step by variant, without bounds."""
    errors: dict[str, list[float]] = {}
    for comparison in comparisons:
        entry = comparison.entry
        if (
            entry.metric == "top1_error"
            and entry.relation in "=~"
            and comparison_lib.selection(entry) == "last step"
        ):
            for cell, _ in comparison.ours:
                errors.setdefault(cell.name, []).append(entry.value)
    return errors


def _experiment(cell: Cell) -> str:
    folders = [run.source for run in cell.runs if run.source.is_dir()]
    resolved = (
        Workdir(folders[0]).read_experiment_file()["experiment"]
        if folders
        else {"model": cell.results[0]["model"]}
    )
    return json.dumps(resolved, indent=2, ensure_ascii=False)


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix() + (
        "/" if path.is_dir() else ""
    )


def _values(mappings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the distinct values by name."""
    values: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            values.setdefault(name, {})["–" if value is None else str(value)] = None
    return {name: list(distinct) for name, distinct in values.items()}


def _row(run: Run) -> dict[str, Any]:
    result = run.result or {}
    protocol = {f"protocol.{name}": value for name, value in result.get("protocol", {}).items()}
    return {name: result.get(name) for name in _IN_CSV} | protocol


_BEGIN, _END = "<!-- results ", "<!-- end -->"
_BLOCK = re.compile(rf"({_BEGIN}(?P<file>\S+) -->\n)(?:(?!{_BEGIN}).)*?{_END}", re.DOTALL)


def fill(path: Path) -> int:
    """Rewrites every block ``<!-- results FILE.json --> ... <!-- end -->``; FILE is relative to the Markdown file.

    Returns:
      Number of blocks that changed.

    Raises:
      UserError: for an open block, or a file of results that is missing or of another kind.
    """
    after, changed = filled(path.read_text(), path.parent)
    if changed:
        path.write_text(after)
    return changed


def filled(text: str, base: Path) -> tuple[str, int]:
    """Returns the text with its blocks filled from files below ``base``, and the number of changed blocks; see ``fill``."""
    if open_block := re.search(rf"{_BEGIN}.*", _BLOCK.sub("", text)):
        raise UserError(f"'{open_block[0]}' is not closed: write '{_END}' after it")
    changed = 0

    def replace(block: re.Match[str]) -> str:
        nonlocal changed
        new = f"{block[1]}{table(base / block['file'], block['file'])}{_END}"
        changed += new != block[0]
        return new

    return _BLOCK.sub(replace, text), changed


def table(path: Path, link: str) -> str:
    """Returns the Markdown table of a file of results, with its command, environment and link."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path}{nearest(str(path), map(str, path.parent.glob('*.json')))}"
        )
    text = results_lib.read_object(path)
    if text.get("kind") == "study":
        rendered, environments = (
            results_lib.tables(results_lib.collect([path]))[0],
            results_lib.read(path),
        )
    elif text.get("kind") == findings.KIND:
        rendered, environments = (
            findings.table(text["tables"][0]),
            [text | {"device": text["devices"]}],
        )
    else:
        raise UserError(
            f"{path} holds results of kind {text.get('kind')!r}; give a study or a {findings.KIND}"
        )
    source = f"`{text['command']}`; {_environment(environments)}; {text['date']}; [data]({link}). {text.get('reduced', '')}".rstrip()
    return "\n".join([*terminal.markdown(rendered), "", source]) + "\n"


def _environment(results: list[dict[str, Any]]) -> str:
    """Returns devices, jax versions and commits, all of them where they differ."""
    devices = [
        f"{r['device']['count']} x {r['device']['kind']}, {r['device']['cores']} cores"
        for r in results
    ]
    commits = [
        "no checkout" if r["commit"] is None else re.sub(r"^(\w{7})\w*", r"commit \1", r["commit"])
        for r in results
    ]
    return "; ".join(
        " and ".join(dict.fromkeys(values))
        for values in (devices, [f"jax {r['versions']['jax']}" for r in results], commits)
    )
