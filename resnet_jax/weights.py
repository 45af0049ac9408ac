"""The command ``weights``: in from others, out to others, and what a file holds."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from tyro.conf import Positional

from resnet_jax import models, options
from resnet_jax.console import out
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, Pretrained
from resnet_jax.models.pretrained import inference, saving
from resnet_jax.models.pretrained.conventions import CONVENTIONS
from resnet_jax.models.pretrained.loading import FILE_NAME
from resnet_jax.models.pretrained.matching import Row
from resnet_jax.training import start
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.workdir import Workdir

Names = Literal["torchvision", "timm", "cifar-torch", "caffe", "caffe-torch"]
NAMES = "\n".join(f"  {each.name:11} {each.of}" for each in CONVENTIONS.values())


_OTHER_FORMATS = (".npz", ".pt", ".pth", ".th", ".tar", ".bin", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How the network is shown images, where it is not as usual for its origin."""

    mean: tuple[float, ...] = ()
    """Of each channel, red first; scale 0 to 1."""
    deviation: tuple[float, ...] = ()
    """Of each channel; scale 0 to 1. 0.00392157 (1/255) where values of 0 to 255 are not divided."""
    resize: int | None = None
    """Pixels of the shorter side before the crop; 0: as it is."""
    crop: int | None = None
    """Side of the central square; 0: the whole image."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How the shorter side is resized."""

    def given(self) -> dict[str, Any]:
        """The fields that are."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ((), None)}


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """A file of weights, and how it is to be read."""

    file: Positional[str]
    """A .safetensors, .npz or torch file (.pth, .th, .pth.tar), a folder of this project's, or OWNER/NAME on the Hugging Face Hub."""
    as_: Annotated[Names | None, tyro.conf.arg(name="as")] = None
    """Whose names its tensors have; this project's own files say so themselves."""
    network: str | None = None
    """A network by its name, as resnet50, or FILE.py:FUNCTION; read from names and shapes where not given."""
    num_classes: int | None = None
    """With --allow-new-head: other classes than the file's."""
    allow_new_head: bool = False
    """Draw the classifier anew where it is missing or does not fit. Nothing else may be missing."""
    view: Annotated[ViewOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ViewOptions)
    data: str = ""
    """TFDS name of the set that it was trained on; imagenet2012, cifar10 or cifar100 by its classes where not given."""
    claimed_error: float | None = None
    """Top-1 error on that set that its authors state, percent."""

    def load(self) -> Pretrained:
        """Reads it."""
        return models.load_pretrained(
            self.file,
            self.as_ or "",
            network=network(self.network),
            num_classes=self.num_classes,
            allow_new_head=self.allow_new_head,
            view=self.view.given(),
            data=self.data,
            claimed_error=self.claimed_error,
        )


@dataclass(frozen=True, kw_only=True)
class ImportOptions(FileOptions):
    """Read weights of others and write them, with their card, in this project's format; every tensor accounted for."""

    to: Path
    """A .safetensors file, or a folder that gets one; neither may be there already."""
    json: bool = False
    """Print network, tensors and card as JSON."""


@dataclass(frozen=True, kw_only=True)
class ShowOptions(FileOptions):
    """Print the card of weights, and where every tensor of the network comes from."""

    json: bool = False
    """Print network, tensors and card as JSON."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the weights of a run, or imported ones, under the names and in the layout of others."""

    source: Positional[Path]
    """A folder that 'resnet-jax train' wrote, or imported weights."""
    as_: Annotated[Names, tyro.conf.arg(name="as")]
    """Whose names they get."""
    to: Path
    """A .safetensors file; none may be there already."""
    prefix: str | None = None
    """Put before every name; what an imported file had where not given."""
    json: bool = False
    """Print the tensors as JSON."""


def import_(arguments: Sequence[str]) -> None:
    """Read weights of others: resnet-jax weights import FILE --as torchvision|timm|cifar-torch|caffe|caffe-torch --to FOLDER"""
    given = options.parse("weights import", ImportOptions, arguments)
    free(given.to)
    weights = given.load()
    file = saving.save(weights, given.to)
    if given.json:
        print(json.dumps(_plain(weights) | {"file": str(file)}))
        return
    _show(weights)
    unsaid = "" if weights.card.data else " --data NAME"
    out.print(f"Written to {given.to}. Score it with: resnet-jax evaluate {given.to}{unsaid}", highlight=False, soft_wrap=True)


def export(arguments: Sequence[str]) -> None:
    """Write weights for others: resnet-jax weights export RUN --as torchvision --to model.safetensors"""
    given = options.parse("weights export", ExportOptions, arguments)
    free(given.to)
    rows = saving.export(start.weights_of(given.source), given.as_, given.to, prefix=given.prefix)
    if given.json:
        print(json.dumps({"file": str(given.to), "tensors": [dataclasses.asdict(row) for row in rows]}))
        return
    out.print(_table(rows, f"name in {given.to.name}"))
    out.print(f"{len(rows)} tensors written to {given.to}, named as {given.as_} names them", highlight=False, soft_wrap=True)


def show(arguments: Sequence[str]) -> None:
    """Print the card of weights and the origin of every tensor: resnet-jax weights show FILE [--as NAMES] [--json]"""
    given = options.parse("weights show", ShowOptions, arguments)
    weights = given.load()
    if given.json:
        print(json.dumps(_plain(weights)))
    else:
        _show(weights)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"import": import_, "export": export, "show": show}


def run(arguments: Sequence[str]) -> None:
    """One of ``COMMANDS``."""
    options.dispatch("weights", COMMANDS, arguments, f"\n\nNames for --as:\n\n{NAMES}")


def network(name: str | None) -> Architecture | None:
    """A network by its name in the catalog, or of the experiment FILE.py:FUNCTION."""
    if name is None:
        return None
    if ":" not in name:
        return models.architecture(name)
    found = options.call(name, "network")
    found = found.model if isinstance(found, Experiment) else found
    if not isinstance(found, Architecture):
        raise UserError(f"{name} returned neither an Architecture nor an Experiment")
    return found


def free(to: Path) -> None:
    """Raises UserError where something lies that weights would be written over, and for a name of another format."""
    if to.suffix in _OTHER_FORMATS:
        raise UserError(f"{to} ends in {to.suffix}, and safetensors is what is written: use FILE.safetensors, or a folder")
    if Workdir(to).experiment_file.exists():
        raise UserError(f"{to} holds a run: use another --to")
    if to.is_file() or (to / FILE_NAME).exists():
        raise UserError(f"{to} is there already: delete it, or use another --to")


def _plain(weights: Pretrained) -> dict[str, Any]:
    return {
        "network": inference.known_as(weights.architecture),
        "card": json.loads(weights.card.text()),
        "tensors": [dataclasses.asdict(row) for row in weights.rows],
    }


def _show(weights: Pretrained) -> None:
    card = weights.card
    out.print(_table(weights.rows, f"name in {card.source}"))
    view = card.view
    mean = "one of every pixel" if isinstance(view.mean[0], tuple) else ", ".join(f"{number:.4g}" for number in view.mean)
    lines = {
        "network": f"{inference.known_as(card.architecture)}, {card.architecture.num_classes} classes",
        "images": f"mean {mean}; deviation {', '.join(f'{number:.4g}' for number in view.deviation)} (scale 0 to 1)",
        "size": f"shorter side {view.resize}, central {view.crop}x{view.crop}, {view.interpolation}" if view.crop else "as they are",
        "claimed": "nothing" if card.claimed_error is None else f"{card.claimed_error} % error on {card.data or 'an unnamed set'}",
        "drawn": f"{sum(not row.source for row in weights.rows)} of {len(weights.rows)} tensors anew",
    }
    for name, line in lines.items():
        out.print(f"{name + ':':9} {line}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row], source: str) -> Table:
    table = Table("name", "shape", source)
    for row in rows:
        table.add_row(row.name, "x".join(map(str, row.shape)) or "()", row.source or "drawn anew")
    return table
