"""Generated parts of the README and of the site: figures and tables from committed data.

``python docs/generate.py`` draws docs/img/degradation.svg and fills README.md; conf.py calls
``write_site`` at every build.
"""

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from unittest import mock

import families
from matplotlib.figure import Figure

import resnet_jax
from resnet_jax import models
from resnet_jax.models import blocks, catalog, components, norms, orders, shortcuts, stems
from resnet_jax.studies import figures, ledger, report, results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
DEGRADATION = RESULTS / "2026-11-30-cpu-degradation.json"
CIFAR = RESULTS / "2026-11-28-h100-he2015-resnet20.json"
LESIONS = RESULTS / "2026-11-28-cpu-lab-lesions-digits.json"
INK = "#7d8590"  # at least 3.7 : 1 on white and on GitHub's dark background
_PLUS_MINUS = "\u00a0±\u00a0"  # not broken at the end of a line
Rows = Sequence[Sequence[object]]


def spreads(file: Path, field: str) -> dict[str, results.Spread]:
    """Returns a field over seeds by variant; ``value`` is the test error in percent."""
    return {variant.name: variant.spread(field) for variant in results.collect([file])}


def draw_degradation() -> str:
    """Returns the SVG of the README: errors of plain and residual networks of two depths."""
    depths = 20, 56
    panels = {"training error (%)": "training_error_percent", "test error (%)": "value"}
    lines = {"plain": (figures.COLORS[1], "--"), "ResNet": ("#2f81f7", "-")}
    with figures.style():
        figure = Figure(figsize=(7.2, 2.9))
        axes = figure.subplots(1, 2, sharey=True)
        for panel, (title, field) in zip(axes, panels.items(), strict=True):
            by_variant = spreads(DEGRADATION, field)
            panel.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
            panel.set(xlim=(12, 90), ylim=(-3, 100), xticks=depths)
            panel.set_xticklabels([f"{depth} layers" for depth in depths])
            for kind, (color, stroke) in lines.items():
                errors = [by_variant[f"{kind}-{depth}"] for depth in depths]
                low = [error.mean - error.deviation for error in errors]
                high = [error.mean + error.deviation for error in errors]
                means = [error.mean for error in errors]
                panel.plot(depths, means, stroke, color=color, linewidth=2.2)
                panel.fill_between(depths, low, high, color=color, alpha=0.18, linewidth=0)
                for depth, error in zip(depths, errors, strict=True):
                    dots = {"color": color, "markeredgewidth": 0, "alpha": 0.75, "clip_on": False}
                    panel.plot([depth] * len(error.values), error.values, "o", **dots)
                deepest = errors[-1]
                text = f"{kind}-{depths[1]}\n{deepest.mean:.1f} ± {deepest.deviation:.1f} %"
                height = deepest.mean if kind == "plain" else deepest.mean + 5
                label = {"color": color, "va": "center", "fontsize": 9.5, "fontweight": "bold"}
                panel.text(depths[1] + 3, height, text, **label)
        written = io.StringIO()
        metadata = {"Date": None, "Title": "Training and test error against depth"}
        figure.savefig(written, format="svg", transparent=True, metadata=metadata)
    text = re.sub(r"(\.\d\d)\d+", r"\1", written.getvalue())
    return re.sub(r" +$", "", text.replace(figures.INK, INK), flags=re.MULTILINE)


def headlines() -> list[str]:
    """Returns the README's headline results, each with a link to its data."""

    def link(file: Path) -> str:
        return f"[data]({file.relative_to(ROOT).as_posix()})"

    def mean(variant: str) -> str:
        return f"{test[variant].mean:.2f} %"

    test = spreads(DEGRADATION, "value")
    seeds = len(test["plain-20"].values)
    (run,) = results.read(CIFAR)
    theirs = next(
        entry.value
        for entry in ledger.load("he2015").entries
        if entry.metric == "top1_error"
        and entry.network
        and entry.architecture() == models.NETWORKS["cifar_resnet20"]
    )
    lesions = {row[0]: row for row in json.loads(LESIONS.read_text())["tables"][0]["rows"]}
    residual, plain = lesions["ResNet-20/seed-0"], lesions["plain-20/seed-0"]
    return [
        f"- **Degradation.** From 20 to 56 layers, the test error of plain networks rises from "
        f"{mean('plain-20')} to {mean('plain-56')}. With shortcuts it is {mean('ResNet-20')} and "
        f"{mean('ResNet-56')} (digits, {seeds} seeds; {link(DEGRADATION)}).",
        f"- **The paper's ResNet-20.** {run['value']:g} % test error on CIFAR-10 after "
        f"{run['steps']:,} steps, in {run['seconds']:.0f} s on one "
        f"{run['device']['kind'].split()[1]}; the paper has {theirs:g} % "
        f"({run['protocol']['dtype']}, one seed; {link(CIFAR)}).",
        f"- **Lesions.** With one block deleted, the median error of ResNet-20 rises from "
        f"{residual[3]:.1f} to {residual[4]:.1f} %, that of plain-20 from {plain[3]:.1f} to "
        f"{plain[4]:.1f} % (digits, one seed; {link(LESIONS)}).",
    ]


_TABLE = re.compile(r"(<!-- results (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADLINES = re.compile(r"(<!-- headlines -->\n).*?(<!-- headlines end -->)", re.DOTALL)


def filled(readme: str) -> str:
    """Returns the README with its headline results and tables."""
    lines = "\n".join(headlines())
    readme = _HEADLINES.sub(rf"\g<1>{lines}\n\g<2>", readme)

    def block(old: re.Match[str]) -> str:
        table, notes = table_of(ROOT / old[2])
        notes.append(f"[data]({old[2]}).")
        return f"{old[1]}{table}\n{'; '.join(notes)}\n{old[3]}"

    return _TABLE.sub(block, readme)


def table_of(file: Path) -> tuple[str, list[str]]:
    """Returns the table of a file of results, its command, environment and date."""
    content = json.loads(file.read_text())
    if content["kind"] == "study":
        table, runs = results.tables(results.collect([file]))[0], results.read(file)
    else:
        table = report.table(content["tables"][0])
        runs = [content | {"device": content["devices"]}]
    where = report.environment(runs)
    commits = [re.sub(r"^([\da-f]{7})\w*", r"commit \1", commit) for commit in where["commit"]]
    parts = where["device"], [f"jax {version}" for version in where["jax"]], commits
    notes = [" and ".join(dict.fromkeys(part)) for part in parts]
    return markdown(table.columns, table.cells()), [
        f"`{content['command']}`",
        *notes,
        content["date"],
    ]


def markdown(header: Sequence[str], rows: Rows) -> str:
    def line(cells: Sequence[object]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(header), f"|{'---|' * len(header)}", *map(line, rows)]) + "\n"


def one_line(thing: object) -> str:
    """Returns the first paragraph of a docstring as Markdown."""
    text = inspect.getdoc(thing) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.replace("``", "`")


def parts_page() -> str:
    """Returns the tables of shortcuts, orders, branches, norms and stems, from docstrings."""
    short_names = {part: name for name, part in shortcuts.OPTIONS.items()}

    def definition(part: components.Factory) -> str:
        if isinstance(part, type):
            return one_line(part)
        return f"`{components.text(part, lambda cls: cls.__name__)}`"

    text = ["# Parts of networks", "", one_line(shortcuts), ""]
    titles = {
        shortcuts: "Shortcuts",
        orders: "Orders",
        blocks: "Residual branches",
        norms: "Norms",
        stems: "Stems and transitions",
    }
    for module, title in titles.items():
        rows = [
            (f"`{name}`", short and f"`{short}`", definition(part))
            for name, part in catalog.parts_of(module).items()
            if name in catalog.known()
            for short in [short_names.get(part, "")]
        ]
        columns = ["class", "short name", "definition and source"]
        if not any(row[1] for row in rows):
            columns, rows = [columns[0], columns[2]], [(row[0], row[2]) for row in rows]
        text += [f"## {title}", "", markdown(columns, rows)]
    return "\n".join(text)


_SHOWN = 12  # published numbers of a shortcut; the ledger's page has all


def _published() -> dict[str, list[ledger.Entry]]:
    """Returns the verified top-1 errors by the class of the network's shortcut."""
    published: dict[str, list[ledger.Entry]] = {}
    for key in sorted(ledger.papers(), key=lambda key: (not key.startswith("he201"), key)):
        for entry in ledger.load(key).entries:
            architecture = entry.architecture() if entry.verified else None
            if architecture and entry.metric == "top1_error":
                name = components.parts(architecture.shortcut)[0].__name__
                published.setdefault(name, []).append(entry)
    return published


def _own_results() -> dict[str, list[tuple[object, ...]]]:
    """Returns rows of the committed studies by the class of the network's shortcut."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    for file in filter(results.is_study, sorted(RESULTS.glob("*.json"), reverse=True)):
        for variant in results.collect([file]):
            name = re.split(r"[:(]", variant.experiment["model"]["shortcut"])[1]
            result, error = variant.results[0], str(variant.error).replace(" ± ", _PLUS_MINUS)
            data = result["protocol"]["dataset"]
            row = (variant.name, data, f"{result['steps']:,}", error, len(variant.results))
            rows.setdefault(name, []).append(row)
    return rows


def _command(name: str, cls: type) -> str:
    """Returns a command line that uses a shortcut, with its arguments."""
    if cls is shortcuts.Concatenation:  # DenseNet has other branches and transitions.
        return "resnet-jax summary cifar_densenet_bc100_12"
    short = next((k for k, v in shortcuts.OPTIONS.items() if v is cls), name)
    optional = {
        parameter: p.default
        for base in cls.__mro__
        for parameter, p in inspect.signature(base.__init__).parameters.items()
        if isinstance(p.default, float | int | str) and p.default != ""
    }
    arguments = ",".join(f"{key}={value!r}" for key, value in optional.items())
    written = f'"{short}({arguments})"' if arguments else short
    options = f"--model.shortcut {written} --workdir runs/{name}"
    break_line = "\\\n    " if len(options) > 45 else ""
    return f"resnet-jax train degradation:resnet20 {break_line}{options}"


def _reference(key: str) -> str:
    """Returns a paper with a link to arXiv."""
    paper = ledger.load(key)
    link = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper.source)
    return f"- {paper.authors}: *{paper.title}*. {link.partition(';')[0]}."


def shortcut_pages() -> Iterator[tuple[str, str]]:
    """Yields the file and the text of the overview, of a page per family, and of the drawings."""
    classes = catalog.parts_of(shortcuts)
    missing = classes.keys() - {"Shortcut"} ^ families.PARTS.keys()
    if missing or families.PARTS.keys() != {
        n for f in families.FAMILIES.values() for n in f.shortcuts
    }:
        raise ValueError(f"docs/families.py and resnet_jax.models.shortcuts differ: {missing}")
    published, ours, overview = _published(), _own_results(), []
    for key, family in families.FAMILIES.items():
        text = [f"# {family.title}", "", family.text, ""]
        for name in family.shortcuts:
            part, definition = families.PARTS[name], one_line(classes[name])
            yield f"block-{name}.svg", families.draw(part)
            overview.append((f"[{name}](shortcuts_{key}.md)", f"`{part.formula()}`", definition))
            alt = f"{name}: {part.formula()}"
            text += [f"## {name}", "", definition, ""]
            text += [f"```{{image}} block-{name}.svg", f":alt: {alt}", ":width: 100%", "```", ""]
            text += ["```sh", _command(name, classes[name]), "```", ""]
            if entries := published.get(name, []):
                rows = [(e.paper, e.table, e.row, str(e), e.statistic) for e in entries[:_SHOWN]]
                header = ["source", "table", "row", "top-1 error %", "statistic"]
                text += ["**Published**", "", markdown(header, rows)]
                if (more := len(entries) - _SHOWN) > 0:
                    text += [f"[Published numbers](ledger.md) has {more} more.", ""]
            if name in ours:
                header = ["variant", "data", "steps", "test error %", "seeds"]
                text += [
                    "**Results here** ([origin](results.md))",
                    "",
                    markdown(header, ours[name]),
                ]
        papers = map(_reference, family.papers)
        yield f"shortcuts_{key}.md", "\n".join([*text, "## Papers", "", *papers, ""])
    lines = [
        "# Shortcuts",
        "",
        "A shortcut carries x, the input of a block, and merges it with the residual branch F(x).",
        "Each is a class of `resnet_jax.shortcuts`; [your own](../guides/ablate.md) works alike.",
        "The network's order places normalization and activation around y, the merged activation.",
        "",
        markdown(["class", "formula", "definition and source"], overview),
        "Pages of the families have drawings, published numbers and results. Numbers with other",
        "data or steps are not comparable.",
        "",
        "```{toctree}",
        ":maxdepth: 1",
        "",
        *(f"shortcuts_{key}" for key in families.FAMILIES),
        "```",
        "",
    ]
    yield "shortcuts.md", "\n".join(lines)


def networks_page() -> str:
    """Returns the names of the catalog by family."""
    by_size: dict[str, list[str]] = {}
    for name in models.NETWORKS:
        by_size.setdefault(re.sub(r"\d.*", "", name), []).append(name)
    rows = [
        (f"`{family}`", ", ".join(f"`{n}`" for n in names)) for family, names in by_size.items()
    ]
    return "\n".join(
        [
            "# Networks",
            "",
            "Names for `create_model` and `resnet-jax summary`. `resnet-jax summary NAME` prints",
            "parameters, multiply-adds and projections by stage.",
            "",
            markdown(["family", "names"], rows),
            "Other depths: `resnet-jax summary cifar_resnet --depth 26`, and `cifar_resnet26` in",
            "`create_model`. Every network has a plain form: `shortcut=shortcuts.NoShortcut`.",
            "",
        ]
    )


def recipes_page() -> str:
    """Returns every file of experiments/ with its docstring and functions."""
    text = [
        "# Recipes",
        "",
        "A recipe is a function that returns one `Experiment` (for `resnet-jax train`) or several",
        "(for `resnet-jax study`). `he2015_cifar10:resnet20` names a recipe from any folder.",
        "",
    ]
    for file in sorted((ROOT / "experiments").glob("*.py")):
        tree = ast.parse(file.read_text())
        title, _, rest = (ast.get_docstring(tree) or "").partition("\n")
        rows = [
            (
                f"`{file.stem}:{node.name}`",
                "train" if ast.unparse(node.returns) == "Experiment" else "study",
                " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()),
            )
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.returns and node.name[0] != "_"
        ]
        text += [f"## {file.stem}", "", title, "", "```text", rest.strip(), "```", ""]
        text += [markdown(["recipe", "command", "contents"], rows)]
    return "\n".join(text)


def results_page() -> str:
    """Returns the table of every file in experiments/results."""
    text = [
        "# Results",
        "",
        "Each table is generated from a file of `experiments/results`, with command, device,",
        "versions, commit and date. Test errors are those of the last step: mean ± standard",
        "deviation over seeds.",
        "",
    ]
    for file in sorted(RESULTS.glob("*.json"), reverse=True):
        content, (table, notes) = json.loads(file.read_text()), table_of(file)
        ending = f". {content.get('reduced', '')}".rstrip()
        words = re.sub(r"experiments/|\.py|runs/", "", content["command"]).split()
        title = " ".join(words[1:3]) if content["kind"] != "study" else words[2]
        text += [
            f"## {title}",
            "",
            table.replace(" ± ", _PLUS_MINUS),
            "; ".join(notes) + ending,
            "",
        ]
        variants = results.collect([file]) if content["kind"] == "study" else ()
        if len(variants) > 1:
            chart = figures.draw_errors(variants, {})
            # Identifiers are unique in a page.
            chart = re.sub(r"\berrors-", f"{file.stem}-", chart)
            text += ["```{raw} html", f'<div class="chart">{chart}</div>', "```", ""]
        name = file.relative_to(ROOT).as_posix()
        text += [f"{{download}}`{name} <../../{name}>`", ""]
    return "\n".join(text)


def ledger_page() -> str:
    """Returns every verified number of the ledger."""
    papers = [ledger.load(key) for key in ledger.papers()]
    count = sum(len(paper.entries) for paper in papers)
    verified = [entry for paper in papers for entry in paper.entries if entry.verified]
    text = [
        "# Published numbers",
        "",
        f"The ledger holds {count} published numbers, {len(verified)} of them verified. The table",
        "lists the verified ones. `resnet-jax report --paper KEY` prints them beside results.",
        "",
    ]
    for paper in papers:
        entries = [entry for entry in paper.entries if entry.verified]
        if not entries:
            continue
        text += [f"## {paper.key}", "", f"{paper.authors}: {paper.title} ({paper.source}).", ""]
        for name, group in groupby(entries, key=lambda entry: entry.table):
            rows = [
                (entry.row, ledger.METRICS[entry.metric], str(entry), entry.statistic)
                for entry in group
            ]
            text += [f"**{name}**", "", markdown(["row", "metric", "value", "statistic"], rows)]
    return "\n".join(text)


def commands_page() -> str:
    """Returns the help of every command."""
    from resnet_jax.cli import COMMANDS, main

    rows = [
        (f"[`{name}`](#{name.replace(' ', '-')})", text) for name, (_, text) in COMMANDS.items()
    ]
    text = [
        "# Commands",
        "",
        "`resnet-jax COMMAND --help` prints the most used options, `--help-all` all of them.",
        "",
        markdown(["command", "purpose"], rows),
    ]
    for name in COMMANDS:
        printed, width = io.StringIO(), mock.patch.dict(os.environ, COLUMNS="92")
        with width, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
        text += [
            f"## {name}",
            "",
            "```text",
            "\n".join(map(str.rstrip, printed.getvalue().splitlines())),
            "```",
            "",
        ]
    return "\n".join(text)


# Packages of the API reference, and the modules that are read first.
_PACKAGES = {
    "models": ("catalog", "resnet", "shortcuts", "blocks", "orders", "norms", "layers", "stems"),
    "weights": ("loading", "card"),
    "data": ("datasets", "prepare"),
    "evaluation": ("exact", "protocols"),
    "training": ("config", "train"),
    "studies": ("study", "results", "comparison", "ledger"),
    "analysis": ("lesions", "paths", "responses"),
}


def api_pages() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of a page per package, from the docstrings of its modules."""
    for package, first in _PACKAGES.items():
        parent = importlib.import_module(f"resnet_jax.{package}")
        names = [m.name for m in pkgutil.iter_modules(parent.__path__) if m.name[0] != "_"]
        names.sort(key=lambda name: first.index(name) if name in first else len(first))
        text = [f"# resnet_jax.{package}", "", one_line(parent), ""]
        for name in names:
            module = f"resnet_jax.{package}.{name}"
            text += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {module}"]
            text += ["   :members:", "   :member-order: bysource", "```", ""]
        yield f"api_{package}.md", "\n".join(text)


def write_site(folder: Path) -> None:
    """Writes the generated pages of the site."""
    folder.mkdir(exist_ok=True)
    pages: dict[str, Callable[[], str]] = {
        "parts.md": parts_page,
        "networks.md": networks_page,
        "recipes.md": recipes_page,
        "results.md": results_page,
        "ledger.md": ledger_page,
        "commands.md": commands_page,
    }
    written = {name: page() for name, page in pages.items()}
    written |= dict(shortcut_pages()) | dict(api_pages())
    for file in folder.iterdir():
        if file.name not in written:
            file.unlink()
    for name, text in written.items():
        file = folder / name
        # Sphinx reads again what has changed.
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)


if __name__ == "__main__":
    (ROOT / "docs" / "img" / "degradation.svg").write_text(draw_degradation())
    (ROOT / "README.md").write_text(filled((ROOT / "README.md").read_text()))
    print(f"resnet_jax {resnet_jax.__version__}: docs/img/degradation.svg and README.md written")
