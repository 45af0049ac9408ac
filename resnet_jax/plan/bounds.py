"""What published rates allow at most. Bounds, not times: no program reaches them, and this one need not come near."""

from dataclasses import dataclass

from resnet_jax.plan.targets import Target


@dataclass(frozen=True)
class Work:
    """What a step asks of each device."""

    images: int
    """Of a step, on a device."""
    bytes: int
    """Moved to and from memory."""
    flops: float
    dtype: str
    """That matrix products are computed in."""
    sent: float
    """Bytes to other devices."""


@dataclass(frozen=True)
class Bound:
    """Least seconds of a step by what limits it, and what follows. Assumes every rate at its published peak."""

    memory_seconds: float
    matrix_seconds: float
    link_seconds: float
    images_per_second: float
    """Of all devices: at most."""
    limited_by: str
    """memory, matrix or link."""
    shares: dict[str, float]
    """Of the published rates that this many images a second would take: 1 of what limits it."""
    efficiency_hidden: float
    """Images a second of a device over those of one alone, both at their bounds, where all exchanges hide behind other work."""
    efficiency_exposed: float
    """The same where none does."""


def of(work: Work, target: Target) -> Bound:
    """The bound that a target's published rates set on a step.

    Computing and moving may overlap in full; exchanges are counted as a ring's, over all links of a chip at once.
    """
    device = target.device
    seconds = {
        "memory": work.bytes / device.bandwidth,
        "matrix": work.flops / device.matrix_rate(work.dtype),
        "link": work.sent / device.link,
    }
    alone = max(seconds["memory"], seconds["matrix"])
    limit = max(seconds, key=lambda name: seconds[name])
    step = seconds[limit]
    return Bound(
        memory_seconds=seconds["memory"],
        matrix_seconds=seconds["matrix"],
        link_seconds=seconds["link"],
        images_per_second=work.images * target.chips / step,
        limited_by=limit,
        shares={name: each / step for name, each in seconds.items()},
        efficiency_hidden=alone / step,
        efficiency_exposed=alone / (alone + seconds["link"]),
    )
