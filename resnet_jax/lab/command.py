"""``resnet-jax lab``: the options of all analyses, and how they print and write their results."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resnet_jax.studies.findings import Finding

Item = TypeVar("Item")

COMMANDS: Mapping[str, str] = {
    "responses": "Strength of layers and branches (He et al. 2015, Figure 7): RUN [RUN ...]",
    "lesions": "Error after blocks are deleted or exchanged (Veit et al. 2016): RUN [PLAIN_TWIN]",
    "paths": "Path lengths, and the gradient that paths carry (Veit et al. 2016): RUN [RUN ...]",
    "identity": "Distance of blocks from the identity (He et al. 2015, Section 3.1): RUN",
    "landscape": "Filter-normalized loss landscape (Li et al. 2018): RUN [PLAIN_TWIN]",
    "depth": "Error against depth (He et al. 2015, Figure 1): RUNS",
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of every analysis."""

    to: Path | None = None
    """Output directory for JSON, CSV, SVG and PNG. Default: lab/ in the first run directory, which 'resnet-jax report'
    includes; none for imported weights."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True, kw_only=True)
class Options(Output):
    """Options of analyses on images."""

    sources: Positional[tuple[Path, ...]]
    """Run directories, or weights written by 'resnet-jax weights import'."""
    images: int = 1000
    """Number of images."""
    data: str | None = None
    """Data set. Default: the training set's."""
    split: str | None = None
    """Default: the test split."""
    batch_size: int = 200
    data_dir: str | None = None
    """Prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no network to analyze: give at least one run directory or file of weights.")
        if min(self.images, self.batch_size) < 1:
            raise UserError(f"--images and --batch-size must be at least 1, got {self.images} and {self.batch_size}.")


def run(arguments: Sequence[str]) -> None:
    """Dispatches to the ``run`` function of an analysis."""
    commands = {name: options_lib.later(f"resnet_jax.lab.{name}", doc) for name, doc in COMMANDS.items()}
    options_lib.dispatch("lab", commands, arguments)


def track(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Iterates with a progress bar on a terminal."""
    from rich.progress import track

    from resnet_jax.console import err

    return track(items, description, console=err, transient=True, disable=not err.is_terminal)


def show(finding: "Finding", draw: Callable[[], "Figure"], options: Output, sources: Sequence[Path], arguments: Sequence[str]) -> None:
    """Writes the result beside the first run, and prints it, also where it cannot be written."""
    from resnet_jax import tables
    from resnet_jax.console import out
    from resnet_jax.studies import findings
    from resnet_jax.training import start

    runs = [source for source in sources if start.is_run(source)]
    folder = options.to or (runs[0] / findings.FOLDER if runs else None)
    command = shlex.join(["resnet-jax", "lab", finding.name, *arguments])
    try:
        files = findings.write(finding, command, draw, folder) if folder else []
    finally:
        if options.json:
            print(json.dumps(finding.plain(command), allow_nan=False))
        else:
            out.print(*map(tables.terminal, finding.tables), sep="\n")
    if files and not options.json:
        endings = ", ".join(file.suffix for file in files)
        out.print(f"{finding.caption}\n{files[0].parent / finding.name}{endings}", highlight=False, soft_wrap=True)
