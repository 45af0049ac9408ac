"""``resnet-jax analyze``: the analyses of trained networks."""

import importlib
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet_jax.cli import options as options_lib
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from resnet_jax.analysis.subjects import Outcome

COMMANDS: Mapping[str, str] = {
    "responses": "Strength of layers and branches (He et al. 2015, Figure 7): RUN [RUN ...]",
    "lesions": "Error after blocks are deleted or exchanged (Veit et al. 2016): RUN [PLAIN_TWIN]",
    "paths": "Path lengths, and the gradient that paths carry (Veit et al. 2016): RUN [RUN ...]",
    "identity": "Distance of blocks from the identity (He et al. 2015, Section 3.1): RUN",
    "landscape": "Filter-normalized loss landscape (Li et al. 2018): RUN [PLAIN_TWIN]",
    "depth": "Error against depth (He et al. 2015, Figure 1): RUNS",
}


def run(arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze ANALYSIS``."""
    commands = {name: _command(name, doc) for name, doc in COMMANDS.items()}
    options_lib.dispatch("analyze", commands, arguments)


def _command(name: str, doc: str) -> options_lib.Command:
    def run(arguments: Sequence[str]) -> None:
        analysis = importlib.import_module(f"resnet_jax.analysis.{name}")
        options = options_lib.parse(f"analyze {name}", analysis.Options, arguments)
        if not options.sources:
            raise UserError(f"analyze {name} needs at least one run directory or file of weights.")
        command = shlex.join(["resnet-jax", "analyze", name, *arguments])
        _show(analysis.run(options), options, command)

    run.__doc__ = doc
    return run


def _show(outcome: "Outcome", options: Any, command: str) -> None:
    """Writes the outcome beside the first run, and prints it, also where it cannot be written."""
    from resnet_jax import terminal
    from resnet_jax.studies import findings, results

    finding, draw = outcome
    directories = (source for source in options.sources if source.is_dir())
    runs = [run for directory in directories for run in results.find(directory)]
    folder = options.to or (runs[0] / findings.FOLDER if runs else None)
    try:
        files = findings.write(finding, command, draw, folder) if folder else []
    finally:
        if options.json:
            print(json.dumps(finding.plain(command), allow_nan=False))
        else:
            terminal.out.print(*map(terminal.terminal, finding.tables), sep="\n")
    if files and not options.json:
        endings = ", ".join(file.suffix for file in files)
        text = f"{finding.caption}\n{files[0].with_suffix('')}{endings}"
        terminal.out.print(text, highlight=False, soft_wrap=True)
