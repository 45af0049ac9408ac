"""Errors against depth: the degradation that residual networks are about. He et al. 2015 (arXiv 1512.03385), Section 1 and Figure 1."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from resnet_jax import configured
from resnet_jax.errors import UserError
from resnet_jax.models.transitions import NoTransition
from resnet_jax.studies import curves
from resnet_jax.studies.cells import Cell, Spread
from resnet_jax.training import resolved


class Depth(NamedTuple):
    """A network of its family."""

    cell: Cell
    layers: int
    """See ``layers``."""

    @property
    def training(self) -> Spread:
        """Error of the last step in percent, over the seeds; of a network that diverged 100."""
        return self.cell.spread("training_error_percent")

    @property
    def test(self) -> Spread:
        """Likewise."""
        return self.cell.error


class Family(NamedTuple):
    """Networks that differ in depth alone, and were trained alike; from the shallowest."""

    title: str
    depths: tuple[Depth, ...]


def families(cells: Sequence[Cell]) -> list[Family]:
    """Puts cells together that agree in everything but ``stages`` and what a result says of its protocol, one of each depth.

    Raises:
      UserError: where no run has finished.
    """
    found: dict[tuple[str, int], dict[int, Depth]] = {}
    for cell in cells:
        if not cell.results:
            continue
        model, protocol = cell.results[0]["model"], cell.results[0]["protocol"]
        made = Depth(cell, layers(model))
        rest = resolved.fingerprint({"protocol": protocol} | {name: value for name, value in model.items() if name != "stages"})
        # Cells of one depth that differ otherwise would be two points of one line above each other.
        place = next(at for at in itertools.count() if made.layers not in found.get((rest, at), {}))
        found.setdefault((rest, place), {})[made.layers] = made
    if not found:
        raise UserError("no run has finished, and only finished runs have their last errors: continue them, or name others")
    return [_named([depths[number] for number in sorted(depths)]) for depths in found.values()]


def stops_learning(family: Family, threshold: float = 10.0) -> int | None:
    """The least depth from which on the median training error stays above ``threshold`` percent; None where the deepest one's is not."""
    failing = itertools.takewhile(lambda each: each.training.median > threshold, reversed(family.depths))
    return min((each.layers for each in failing), default=None)


def layers(model: dict[str, Any]) -> int:
    """Layers with weights as the papers count them: the stem, the branches' convolutions, convolutions between stages, the classifier.

    Args:
      model: a resolved ``models.Architecture``.
    """
    _, arguments = configured.parts(configured.parse(model["branch"]))
    between = len(model["stages"]) - 1 if model["transition"] != resolved.resolve(NoTransition) else 0
    return 2 + len(arguments.get("kernels", (3, 3))) * sum(model["stages"]) + between


def _named(depths: Sequence[Depth]) -> Family:
    return Family(curves.common([each.cell.name for each in depths])[0], tuple(depths))
