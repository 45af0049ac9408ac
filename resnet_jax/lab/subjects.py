"""What the laboratory looks at: a trained network, and images that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path

from resnet_jax.data import sources
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab.looking import Looking
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import start


def load(source: Path, looking: Looking) -> tuple[Pretrained, Examples]:
    """The weights of a run or of a file of this project's format, and images of a split.

    Raises:
      UserError: where something of it is missing, or does not fit the network.
    """
    weights = start.weights_of(source)
    name = looking.data or weights.card.data
    if not name:
        raise UserError(f"{weights.card.source} does not say which images it was trained on: say which to look at, as --data cifar10")
    info = sources.describe(name, looking.data_dir)
    split = looking.split or ("test" if "test" in info.examples else "validation")
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
    return weights, Examples(found.images[: looking.images], found.labels[: looking.images])


def names(given: Sequence[Path]) -> list[str]:
    """Short names for runs: the ends of their paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in given]
    for length in range(1, max(map(len, parts)) + 1):
        shortened = ["/".join(each[-length:]) for each in parts]
        if len(set(shortened)) == len(set(parts)):
            return [f"{name} ({number})" if shortened[:number].count(name) else name for number, name in enumerate(shortened)]
    return [str(path) for path in given]
