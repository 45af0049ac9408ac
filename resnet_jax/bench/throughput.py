"""Images a second of a network, training and inference, beside peers and beside what the device reaches at best."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax

from resnet_jax import models
from resnet_jax.bench import ceilings, rounds
from resnet_jax.bench.peers import linen, torch_networks
from resnet_jax.bench.peers.peer import Peer, Work
from resnet_jax.bench.workload import Workload
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15
from resnet_jax.models.shortcuts import Projection, ZeroPad
from resnet_jax.models.stems import ImageNetStem, SmallImageStem
from resnet_jax.plan import arithmetic

WORKS: tuple[Work, ...] = get_args(Work)


def measure(
    name: str, network: Architecture, *, works: Sequence[Work], batch_size: int, execution: Execution, peers: bool, count: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for ours and each peer, of each kind of work, from ``count`` interleaved rounds.

    Rows hold seconds (median, least, most), ``images_per_second``, ``ours_over_this`` (median over the rounds of this one's seconds over
    ours), FLOPs of matrix products and convolutions a second, and their share of a measured matrix product. Of ours also bytes that the
    compiled program says it moves, a second and as a share of a measured copy, and the memory that it says it takes: what the device
    has had in use at most is also the peers'.

    Raises:
      RuntimeError: where a peer has another number of parameters, so does other work.
    """
    side, megabytes = ceilings.sizes(jax.default_backend())
    multiply, flops = ceilings.product(network.dtype, side)
    copy, copied = ceilings.copy(megabytes)
    for work in works:
        ours, about = _ours(network, batch_size, work, execution)
        running, failed = [ours], []
        for make in _peers(name, network, batch_size, work) if peers else ():
            try:
                running.append(_ready(make))
            except Exception as error:  # a compiler of theirs that does not work here, say: it is said, and the others are measured
                failed.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
        for peer in running:
            if peer.parameters != ours.parameters:
                raise RuntimeError(f"{peer.name} has {peer.parameters} parameters, {name} {ours.parameters}: not the same work")
        *seconds, multiplied, moved = rounds.interleaved([*(peer.run for peer in running), multiply, copy], count)
        best = {"matrix": flops / rounds.spread(multiplied)["seconds"], "copy": copied / rounds.spread(moved)["seconds"]}
        for peer, spent in zip(running, seconds, strict=True):
            found = rounds.spread(spent)
            row = {
                "network": name,
                "work": work,
                "batch_size": batch_size,
                "dtype": network.dtype,
                "what": peer.name,
                "version": peer.version,
                "parameters": peer.parameters,
                **found,
                "images_per_second": batch_size / found["seconds"],
                "ours_over_this": rounds.ratio(spent, seconds[0]),
                "flops_per_second": about["flops"] / found["seconds"],
                "share_of_matrix": about["flops"] / found["seconds"] / best["matrix"],
                "matrix_flops_per_second": best["matrix"],
                "copy_bytes_per_second": best["copy"],
            }
            if peer is ours:
                rate = about["bytes"] / found["seconds"]
                row |= about | {"bytes_per_second": rate, "share_of_copy": rate / best["copy"]}
                row |= {"failed_peers": failed}
            yield row


def _ours(network: Architecture, batch_size: int, work: Work, execution: Execution) -> tuple[Peer, dict[str, int]]:
    made = Workload(network, batch_size, execution)
    batch, state = made.batch(), [made.state()]
    if work == "training":
        traced: Any = made.step.trace(state[0], batch)
    else:
        traced = made.infer.trace(state[0].params, state[0].batch_stats, batch.images)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    about = {
        "flops": arithmetic.flops(traced.jaxpr),
        "bytes": int(cost.get("bytes accessed", 0)),
        "peak_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(state[0].params))

    def run() -> None:
        if work == "inference":
            jax.block_until_ready(compiled(state[0].params, state[0].batch_stats, batch.images))
            return
        state[0], metrics = compiled(state[0], batch)
        jax.block_until_ready(metrics)

    return Peer("resnet-jax", f"jax {jax.__version__}", count, run), about


def _peers(name: str, network: Architecture, batch_size: int, work: Work) -> Iterator[Callable[[], Peer]]:
    found = _linen(network)
    if found is not None:
        forward = linen.plain(found)
        yield lambda: linen.peer(forward, network.input_shape, network.num_classes, batch_size, work)
        if (published := linen.published(name, network.num_classes, network.dtype)) is not None:
            yield lambda: linen.peer(published, network.input_shape, network.num_classes, batch_size, work)
    if torch_networks.installed():
        stages, widths = tuple(network.stages), tuple(network.features)
        for label, version, make in torch_networks.makers(_catalog_name(name, network), stages, widths, network.num_classes):
            yield from torch_networks.peers(make, label, version, network.input_shape, batch_size, network.dtype, work)


def _catalog_name(name: str, network: Architecture) -> str:
    """What decides which of theirs it is: small images with parameter-free shortcuts, or its own name."""
    return "cifar_resnet" if _plain(network) and network.stem is SmallImageStem and network.shortcut is ZeroPad else name


def _plain(network: Architecture) -> bool:
    """Whether it is one of He et al. 2015, Section 4.2 or Table 1: unchanged orders, norms and widths."""
    same = Architecture(stages=network.stages, features=network.features)
    changed = ("order", "norm", "transition", "stochastic_depth", "output_stride", "stem_features")
    return network.branch in (Basic, Bottleneck, BottleneckV15) and all(
        getattr(network, field) == getattr(same, field) for field in changed
    )


def _linen(network: Architecture) -> linen.ResNet | None:
    small = network.stem is SmallImageStem and network.shortcut is ZeroPad and network.branch == Basic
    large = network.stem is ImageNetStem and network.shortcut is Projection
    if not _plain(network) or not (small or large):
        return None
    return linen.ResNet(
        stages=tuple(network.stages),
        features=tuple(network.features),
        imagenet=large,
        bottleneck=network.branch != Basic,
        stride_in_1x1=network.branch == Bottleneck,
        classes=network.num_classes,
        dtype=network.dtype,
    )


def _ready(make: Callable[[], Peer]) -> Peer:
    """Made, and run once, so that what cannot run is known before the rounds."""
    peer = make()
    peer.run()
    return peer


def versions() -> dict[str, str]:
    """Of the peers' packages that are installed."""
    return {
        name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "jax_resnet") if torch_networks.installed(name)
    }


def networks(names: Sequence[str], dtype: str) -> list[tuple[str, Architecture]]:
    """Looks all of them up, before the first is measured."""
    return [(name, dataclasses.replace(models.architecture(name), dtype=dtype)) for name in names]
