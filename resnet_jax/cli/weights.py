"""``resnet-jax weights``: import, export and show weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from resnet_jax.cli import options
from resnet_jax.cli.options import AsJson
from resnet_jax.errors import require
from resnet_jax.models.components import Factory
from resnet_jax.terminal import Table, show
from resnet_jax.training import fine_tune
from resnet_jax.training.run_dir import Workdir
from resnet_jax.weights import Pretrained, inference, load_pretrained, saving
from resnet_jax.weights.card import Interpolation
from resnet_jax.weights.hub import FILE_NAME
from resnet_jax.weights.loading import Row
from resnet_jax.weights.names import CONVENTIONS

Convention = Literal["torchvision", "timm", "cifar-torch", "transformers", "sequential"]
_HELP = " ".join(f"{one.name}: {one.description}." for one in CONVENTIONS.values())
As = tyro.conf.arg(name="as", help=f"Convention of the tensor names. {_HELP}")
_GROUPS = {
    "view": ("mean", "deviation", "resize", "crop", "interpolation"),
    "parts": ("stem", "branch", "shortcut", "norm"),
}
_HUB = f"{_HELP} hub: this project's names, for any network."


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights of a file, and what it does not state."""

    file: Positional[str]
    """A .safetensors, .npz or torch file, a folder, OWNER/NAME on the Hub, or the name of weights
    such as resnet50.a1_in1k or ResNet50_Weights.IMAGENET1K_V2."""
    as_: Annotated[Convention | None, As] = None
    """By default found from the names."""
    key: str | None = None
    """Dictionary of a torch file, such as state_dict_ema."""
    prefix: str | None = None
    """Prefix of the names, such as module.encoder_q.; names without it are left out."""
    no_head: bool = False
    """Leave out names that no residual network has, such as projection heads."""
    network: str | None = None
    """A network such as resnet50, or FILE.py:FUNCTION; by default from names and shapes."""
    stem: Factory | None = None
    """This and the next three: parts of the inferred network."""
    branch: Factory | None = None
    shortcut: Factory | None = None
    norm: Factory | None = None
    num_classes: int | None = None
    """With --allow-new-head: another number of classes than the file's."""
    allow_new_head: bool = False
    """Draw the classifier if it is missing or does not fit."""
    mean: tuple[float, ...] = ()
    """Mean of images in [0, 1], per channel (RGB). This and the next: ImageNet's by default."""
    deviation: Annotated[tuple[float, ...], tyro.conf.arg(name="std", aliases=["--deviation"])] = ()
    """Standard deviation of images in [0, 1], per channel."""
    resize: int | None = None
    """Pixels of the shorter side before the crop; 0: none. Default: 256, or 0 for small images."""
    crop: int | None = None
    """Side of the central square; 0: the whole. Default: 224, or 0."""
    interpolation: Interpolation | None = None
    data: str = ""
    """TFDS name of the training set. Default: imagenet2012, cifar10 or cifar100, by the classes."""
    claimed_error: float | None = None
    """Published top-1 error on that set, percent."""

    def load(self) -> Pretrained:
        given = {name: value for name, value in vars(self).items() if value not in (None, ())}
        if self.network:
            given["network"] = options.network(self.network)
        for group, names in _GROUPS.items():
            given[group] = {name: given.pop(name) for name in names if name in given}
        return load_pretrained(given.pop("file"), given.pop("as_", ""), **given)


Weights = Annotated[Source, tyro.conf.arg(name="")]


def import_(source: Weights, *, to: Path, as_json: AsJson = False) -> None:
    """Convert weights of other code bases into this project's format, with their card.

    Args:
      to: A new .safetensors file, or a folder that gets one.
    """
    _require_free(to)
    weights = source.load()
    file = saving.save(weights, to)
    data = "" if weights.card.data else " --data NAME"
    text = f"Written to {to}. To score it: resnet-jax evaluate {to}{data}"
    _show(weights, as_json, text, file=str(file))


def export(
    source: Positional[Path],
    *,
    as_: Annotated[Convention | Literal["hub"], tyro.conf.arg(name="as", help=_HUB)],
    to: Path,
    prefix: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a run, or imported ones, in another convention.

    Args:
      source: A run, or imported weights.
      to: A new .safetensors file; or a folder for timm or the Hub, with config.json and model card.
      prefix: Prefix of every name; that of an imported file by default.
    """
    _require_free(to)
    rows = saving.export(fine_tune.weights_of(source), as_, to, prefix=prefix)
    text = f"{len(rows)} tensors written to {to} in the names of {as_}"
    data = {"file": str(to), "tensors": [row._asdict() for row in rows]}
    show(as_json, data, _table(rows, to.name), text)


def push(folder: Positional[Path], repository: Positional[str]) -> None:
    """Upload a folder of 'weights export' to the Hugging Face Hub.

    Args:
      folder: A folder that 'weights export' wrote.
      repository: OWNER/NAME. The token is that of 'hf auth login', or HF_TOKEN.
    """
    print(saving.push(folder, repository))


def show_(source: Weights, *, as_json: AsJson = False) -> None:
    """Print the card of weights, and the origin of every tensor."""
    _show(source.load(), as_json)


def _require_free(to: Path) -> None:
    exists = Workdir(to).experiment_file.exists() or to.is_file() or (to / FILE_NAME).exists()
    require(not exists, f"{to} exists: delete it, or use another --to")
    wrong = f"{to} ends in {to.suffix}, but safetensors is written: use another --to"
    require(to.suffix in ("", ".safetensors"), wrong)


def _show(weights: Pretrained, as_json: bool, *texts: str, **more: str) -> None:
    card, rows = weights.card, weights.rows
    network = inference.known_as(card.architecture)
    data = {"network": network, "card": json.loads(card.text()), "notes": weights.notes, **more}
    images = vars(card.view) | ({} if np.ndim(card.view.mean) == 1 else {"mean": "an image"})
    claimed = f"{card.claimed_error} % error on {card.data or 'an unknown set'}"
    show(
        as_json,
        data | {"tensors": [row._asdict() for row in rows]},
        _table(rows, card.source),
        f"network:  {network}, {card.architecture.num_classes} classes",
        "images:   " + ", ".join(f"{name} {value}" for name, value in images.items()),
        f"claimed:  {'nothing' if card.claimed_error is None else claimed}",
        f"drawn:    {sum(not row.source for row in rows)} of {len(rows)} tensors",
        *weights.notes,
        *texts,
    )


def _table(rows: Sequence[Row], file: str) -> Table:
    cells = ((r.name, "x".join(map(str, r.shape)) or "()", r.source or "drawn") for r in rows)
    return Table("", ("name", "shape", f"name in {file}"), tuple(cells))
