"""The command ``weights``: import, export and show weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

from resnet_jax import weights as weights_lib
from resnet_jax.cli import options
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture
from resnet_jax.terminal import out
from resnet_jax.training import fine_tune
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.weights import Pretrained, inference, saving
from resnet_jax.weights.card import Interpolation
from resnet_jax.weights.loading import FILE_NAME, Row
from resnet_jax.weights.names import CONVENTIONS

Names = Literal["torchvision", "timm", "cifar-torch"]
NAMES = "\n".join(
    f"  {convention.name:11} {convention.description}" for convention in CONVENTIONS.values()
)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Print the card of weights, and the origin of every tensor."""

    file: Positional[str]
    """A .safetensors, .npz or torch file, a folder of this project's, or OWNER/NAME on the Hugging Face Hub."""
    as_: Annotated[Names | None, tyro.conf.arg(name="as")] = None
    """Convention of its tensor names; not for this project's own files."""
    network: str | None = None
    """A network such as resnet50, or FILE.py:FUNCTION; inferred from names and shapes by default."""
    num_classes: int | None = None
    """With --allow-new-head: another number of classes than the file's."""
    allow_new_head: bool = False
    """Draw the classifier if it is missing or does not fit."""
    mean: tuple[float, ...] = ()
    """Mean of images scaled to [0, 1], per channel (RGB). Default: the convention's, as for the next four."""
    deviation: tuple[float, ...] = ()
    """Standard deviation of images scaled to [0, 1], per channel."""
    resize: int | None = None
    """Pixels of the shorter side before the crop; 0: no resize."""
    crop: int | None = None
    """Side of the central square; 0: the whole image."""
    interpolation: Interpolation | None = None
    data: str = ""
    """TFDS name of the training set; by default imagenet2012, cifar10 or cifar100, by the number of classes."""
    claimed_error: float | None = None
    """Published top-1 error on that set, percent."""
    json: bool = False
    """Print network, tensors and card as JSON."""

    def load(self) -> Pretrained:
        """Returns the weights."""
        view = {
            name: getattr(self, name)
            for name in ("mean", "deviation", "resize", "crop", "interpolation")
        }
        view = {name: value for name, value in view.items() if value not in ((), None)}
        more = {
            name: getattr(self, name)
            for name in ("num_classes", "allow_new_head", "data", "claimed_error")
        }
        return weights_lib.load_pretrained(
            self.file, self.as_ or "", network=_network(self.network), view=view, **more
        )


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ShowOptions):
    """Convert weights of other code bases into this project's format, with their card."""

    to: Path
    """A new .safetensors file, or a folder that gets one."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the weights of a run, or imported ones, in another convention."""

    source: Positional[Path]
    """A run, or imported weights."""
    as_: Annotated[Names, tyro.conf.arg(name="as")]
    """Convention of the tensor names."""
    to: Path
    """A new .safetensors file."""
    prefix: str | None = None
    """Prefix of every name; that of an imported file by default."""
    json: bool = False
    """Print the tensors as JSON."""


def import_(arguments: Sequence[str]) -> None:
    """Import weights of other code bases: resnet-jax weights import FILE --as torchvision|timm|cifar-torch --to FOLDER"""
    parsed = options.parse("weights import", ImportOptions, arguments)
    _require_free(parsed.to)
    weights = parsed.load()
    file = saving.save(weights, parsed.to)
    _print(weights, parsed.json, file=str(file))
    if not parsed.json:
        data = "" if weights.card.data else " --data NAME"
        out.print(
            f"Written to {parsed.to}. To score it: resnet-jax evaluate {parsed.to}{data}",
            highlight=False,
            soft_wrap=True,
        )


def export(arguments: Sequence[str]) -> None:
    """Export weights: resnet-jax weights export RUN --as torchvision --to model.safetensors"""
    parsed = options.parse("weights export", ExportOptions, arguments)
    _require_free(parsed.to)
    rows = saving.export(
        fine_tune.weights_of(parsed.source), parsed.as_, parsed.to, prefix=parsed.prefix
    )
    if parsed.json:
        print(json.dumps({"file": str(parsed.to), "tensors": [row._asdict() for row in rows]}))
        return
    out.print(_table(rows, f"name in {parsed.to.name}"))
    out.print(
        f"{len(rows)} tensors written to {parsed.to} in the names of {parsed.as_}",
        highlight=False,
        soft_wrap=True,
    )


def show(arguments: Sequence[str]) -> None:
    """Print the card of weights and the origin of every tensor: resnet-jax weights show FILE [--as NAMES] [--json]"""
    parsed = options.parse("weights show", ShowOptions, arguments)
    _print(parsed.load(), parsed.json)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "import": import_,
    "export": export,
    "show": show,
}


def run(arguments: Sequence[str]) -> None:
    """Runs one of ``COMMANDS``."""
    options.dispatch("weights", COMMANDS, arguments, f"\n\nConventions for --as:\n\n{NAMES}")


def _network(name: str | None) -> Architecture | str | None:
    """Returns the network of FILE.py:FUNCTION, or a name of the catalog."""
    if name is None or ":" not in name:
        return name
    network = options.call(name, "network")
    network = network.model if isinstance(network, Experiment) else network
    if not isinstance(network, Architecture):
        raise UserError(f"{name} returned neither an Architecture nor an Experiment")
    return network


def _require_free(to: Path) -> None:
    """Raises UserError if a file would be overwritten, or for a name of another format."""
    if to.suffix not in ("", ".safetensors"):
        raise UserError(
            f"{to} ends in {to.suffix}, but safetensors is written: use FILE.safetensors, or a folder"
        )
    if Workdir(to).experiment_file.exists() or to.is_file() or (to / FILE_NAME).exists():
        raise UserError(f"{to} exists: delete it, or use another --to")


def _print(weights: Pretrained, as_json: bool, **more: str) -> None:
    card, view, rows = weights.card, weights.card.view, weights.rows
    network = inference.known_as(card.architecture)
    if as_json:
        print(
            json.dumps(
                {
                    "network": network,
                    "card": json.loads(card.text()),
                    "tensors": [row._asdict() for row in rows],
                    **more,
                }
            )
        )
        return
    out.print(_table(rows, f"name in {card.source}"))
    mean = "an image" if isinstance(view.mean[0], tuple) else view.mean
    lines = {
        "network": f"{network}, {card.architecture.num_classes} classes",
        "images": f"mean {mean}, deviation {view.deviation}, resize {view.resize}, crop {view.crop}, {view.interpolation}",
        "claimed": "nothing"
        if card.claimed_error is None
        else f"{card.claimed_error} % error on {card.data or 'an unknown set'}",
        "drawn": f"{sum(not row.source for row in rows)} of {len(rows)} tensors",
    }
    for name, line in lines.items():
        out.print(f"{name + ':':9} {line}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row], source: str) -> Table:
    table = Table("name", "shape", source)
    for row in rows:
        table.add_row(row.name, "x".join(map(str, row.shape)) or "()", row.source or "drawn")
    return table
