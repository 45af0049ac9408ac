"""Short names of the parts of augmentation: how the command line and the tables write them."""

from resnet_jax.configured import Factory
from resnet_jax.data import colour, crops, erasing, mixing, policies


def known() -> dict[str, Factory]:
    """Short name to part, of every part that comes with the package."""
    return {
        name: value
        for module in (crops, policies, colour, erasing, mixing)
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }
