"""``resnet-jax weights``: import, export and show weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from resnet_jax.cli import options
from resnet_jax.cli.options import AsJson
from resnet_jax.errors import UserError
from resnet_jax.terminal import Table, show
from resnet_jax.training import fine_tune
from resnet_jax.training.run_dir import Workdir
from resnet_jax.weights import Pretrained, inference, load_pretrained, saving
from resnet_jax.weights.card import Interpolation
from resnet_jax.weights.loading import FILE_NAME, Row
from resnet_jax.weights.names import CONVENTIONS

Convention = Literal["torchvision", "timm", "cifar-torch"]
_HELP = " ".join(f"{one.name}: {one.description}." for one in CONVENTIONS.values())
As = tyro.conf.arg(name="as", help=f"Convention of the tensor names. {_HELP}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights of a file, and what it does not state."""

    file: Positional[str]
    """A .safetensors, .npz or torch file, a folder of this project's, or OWNER/NAME on the Hub."""
    as_: Annotated[Convention | None, As] = None
    network: str | None = None
    """A network such as resnet50, or FILE.py:FUNCTION; by default from names and shapes."""
    num_classes: int | None = None
    """With --allow-new-head: another number of classes than the file's."""
    allow_new_head: bool = False
    """Draw the classifier if it is missing or does not fit."""
    mean: tuple[float, ...] = ()
    """Mean of images in [0, 1], per channel (RGB). This and the next: ImageNet's by default."""
    deviation: tuple[float, ...] = ()
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
        names = ("mean", "deviation", "resize", "crop", "interpolation")
        view = {name: getattr(self, name) for name in names}
        return load_pretrained(
            self.file,
            self.as_ or "",
            network=options.network(self.network) if self.network else None,
            view={name: value for name, value in view.items() if value not in ((), None)},
            num_classes=self.num_classes,
            allow_new_head=self.allow_new_head,
            data=self.data,
            claimed_error=self.claimed_error,
        )


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
    as_: Annotated[Convention, As],
    to: Path,
    prefix: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a run, or imported ones, in another convention.

    Args:
      source: A run, or imported weights.
      to: A new .safetensors file.
      prefix: Prefix of every name; that of an imported file by default.
    """
    _require_free(to)
    rows = saving.export(fine_tune.weights_of(source), as_, to, prefix=prefix)
    text = f"{len(rows)} tensors written to {to} in the names of {as_}"
    data = {"file": str(to), "tensors": [row._asdict() for row in rows]}
    show(as_json, data, _table(rows, to.name), text)


def show_(source: Weights, *, as_json: AsJson = False) -> None:
    """Print the card of weights, and the origin of every tensor."""
    _show(source.load(), as_json)


def _require_free(to: Path) -> None:
    exists = Workdir(to).experiment_file.exists() or to.is_file() or (to / FILE_NAME).exists()
    if exists or to.suffix not in ("", ".safetensors"):
        problem = (
            "exists: delete it, or"
            if exists
            else f"ends in {to.suffix}, but safetensors is written:"
        )
        raise UserError(f"{to} {problem} use another --to")


def _show(weights: Pretrained, as_json: bool, *texts: str, **more: str) -> None:
    card, rows = weights.card, weights.rows
    network = inference.known_as(card.architecture)
    tensors = [row._asdict() for row in rows]
    data = {"network": network, "card": json.loads(card.text()), "tensors": tensors, **more}
    images = vars(card.view)
    if isinstance(card.view.mean[0], tuple):
        images = images | {"mean": "an image"}
    claimed = "nothing"
    if card.claimed_error is not None:
        claimed = f"{card.claimed_error} % error on {card.data or 'an unknown set'}"
    show(
        as_json,
        data,
        _table(rows, card.source),
        f"network:  {network}, {card.architecture.num_classes} classes",
        "images:   " + ", ".join(f"{name} {value}" for name, value in images.items()),
        f"claimed:  {claimed}",
        f"drawn:    {sum(not row.source for row in rows)} of {len(rows)} tensors",
        *texts,
    )


def _table(rows: Sequence[Row], file: str) -> Table:
    cells = ((r.name, "x".join(map(str, r.shape)) or "()", r.source or "drawn") for r in rows)
    return Table("", ("name", "shape", f"name in {file}"), tuple(cells))
