"""What a peer has to do: the work of one of our steps, on images that are made up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Work = Literal["training", "inference"]


@dataclass(frozen=True)
class Peer:
    """One implementation, ready to be timed."""

    name: str
    """With how it is run: torchvision, channels_last."""
    version: str
    """Of the packages that it is made of."""
    parameters: int
    """Of the network; equal to ours."""
    run: Callable[[], None]
    """Does one step, and waits until it is done."""
