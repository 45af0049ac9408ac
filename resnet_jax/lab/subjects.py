"""What the laboratory looks at: a trained network, and images that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path

from resnet_jax.data import sources
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import start


def load(source: Path, data: str | None, split: str | None, images: int, data_dir: str | None) -> tuple[Pretrained, Examples]:
    """The weights of a run or of a file, and the first images of a split.

    Args:
      source: a run, or a file of weights in this project's format.
      data: a prepared set whose images have the network's size; None: the one that it was trained on.
      split: None: the test split.
      images: how many at most.
      data_dir: where prepared sets are looked for first.

    Raises:
      UserError: where something of it is missing, or does not fit the network.
    """
    weights = start.weights_of(source)
    name = data or weights.card.data
    if not name:
        raise UserError(f"{weights.card.source} does not say which images it was trained on: say which to look at, as --data cifar10")
    info = sources.describe(name, data_dir)
    split = split or ("test" if "test" in info.examples else "validation")
    if split not in info.examples:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(info.examples)}")
    shape = weights.architecture.input_shape
    if tuple(info.image_shape) != shape:
        raise UserError(
            f"images of {name} have the shape {info.image_shape}, and the network takes {shape}: give a set of that size, --data"
        )
    if info.num_classes != weights.architecture.num_classes:
        classes = f"{info.num_classes} classes, and the network {weights.architecture.num_classes}"
        raise UserError(f"{name} has {classes}: give the set that it was trained on, --data")
    found = sources.read(info, split)
    return weights, Examples(found.images[:images], found.labels[:images])


def names(given: Sequence[Path]) -> list[str]:
    """Short names for runs: the ends of their paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in given]
    for length in range(1, max(map(len, parts)) + 1):
        shortened = ["/".join(each[-length:]) for each in parts]
        if len(set(shortened)) == len(set(parts)):
            return [f"{name} ({number})" if shortened[:number].count(name) else name for number, name in enumerate(shortened)]
    return [str(path) for path in given]
