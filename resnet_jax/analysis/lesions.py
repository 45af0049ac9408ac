"""Blocks of trained networks deleted and exchanged: Veit et al. 2016 (arXiv 1605.06431), Section 4."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy import stats

from resnet_jax.analysis import plots, subjects
from resnet_jax.analysis.subjects import Network
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.studies.findings import Finding
from resnet_jax.weights.loading import Pretrained

Kind = Literal["none", "one", "several", "exchanged"]


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Error after blocks are deleted, alone and together, and pairs exchanged (Veit et al. 2016,
    Section 4). A deleted block of a plain network passes its input through."""

    deleted: int = 20
    """Maximum number of blocks deleted at once."""
    exchanged: int = 20
    """Maximum number of pairs exchanged."""
    draws: int = 10
    """Random lesions per number."""
    seed: int = 0


class Lesion(NamedTuple):
    """A change of a network."""

    kind: Kind
    deleted: tuple[int, ...] = ()
    """Blocks whose branch is deleted."""
    order: tuple[int, ...] = ()
    """Block at each position; empty: original order."""
    pairs: int = 0
    """Number of successive exchanges."""

    @property
    def number(self) -> int:
        """Number of deleted blocks or exchanged pairs."""
        return len(self.deleted) or self.pairs

    @property
    def tau(self) -> float:
        """Kendall's rank correlation between the order and the original one."""
        if not self.order:
            return 1.0
        correlation: Any = stats.kendalltau(range(len(self.order)), self.order)
        return float(correlation.statistic)


Errors = Sequence[tuple[Lesion, float]]
"""Lesions of a network with the error after each in percent; the first is ``none``."""


def run(options: Options) -> subjects.Outcome:
    """Runs ``resnet-jax analyze lesions``."""

    def measure_network(weights: Pretrained, examples: Examples) -> Errors:
        numbers = options.deleted, options.exchanged, options.draws, options.seed
        lesions = plan(weights.build().exchangeable(), *numbers)
        errors = measure(weights, examples, lesions, batch_size=options.batch_size)
        return list(zip(lesions, errors.tolist(), strict=True))

    return subjects.analyze(options, measure_network, describe, draw)


def plan(
    exchangeable: Sequence[range],
    most_deleted: int = 20,
    most_exchanged: int = 20,
    draws: int = 10,
    seed: int = 0,
) -> list[Lesion]:
    """Returns the lesions of the paper; at least one block is left.

    None, each block alone, 1, 2, ... at once (Figure 5a), 1, 2, ... exchanges (Figure 5b).
    ``exchangeable`` are the ranges of blocks of equal structure, see ``ResNet.exchangeable``.
    """
    blocks = exchangeable[-1].stop
    rng = np.random.default_rng(seed)
    lesions = [Lesion("none"), *(Lesion("one", (block,)) for block in range(blocks))]
    for count in range(1, min(most_deleted, blocks - 1) + 1):
        for _ in range(draws):
            deleted = rng.choice(blocks, count, replace=False)
            lesions.append(Lesion("several", tuple(sorted(deleted.tolist()))))
    pairs = [(i, j) for group in exchangeable for i in group for j in group if i < j]
    for count in range(1, most_exchanged + 1 if pairs else 1):
        for _ in range(draws):
            order = list(range(blocks))
            for number in rng.integers(len(pairs), size=count):
                i, j = pairs[number]
                order[i], order[j] = order[j], order[i]
            lesions.append(Lesion("exchanged", order=tuple(order), pairs=count))
    return lesions


class PassThrough(ZeroPad):
    """A plain block: its branch where the switch is 1, its input, resized as by option A, at 0.

    Veit et al. 2016 (Section 4.1) delete layers of plain networks so: a branch times 0 would leave
    nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.switch = subjects.Switch(jnp.ones(()))

    def __call__(self, x: Array, branch: Array, *, train: bool) -> Array:
        return jnp.where(self.switch[...] > 0, branch, self.carry(x, train=train))


def measure(
    weights: Pretrained, examples: Examples, lesions: Sequence[Lesion], *, batch_size: int = 200
) -> Float[np.ndarray, "lesions"]:
    """Returns the error after each lesion in percent; all lesions share one compiled program.

    A block is deleted by a factor of 0 on its branch, a block of a plain network by
    ``PassThrough``.
    """
    groups = weights.build().exchangeable()
    intact = list(range(groups[-1].stop))
    for lesion in lesions:
        order = lesion.order or intact
        # The compiled program checks neither.
        if not set(lesion.deleted) <= set(intact) or any(
            sorted(order[group.start : group.stop]) != list(group) for group in groups
        ):
            raise UserError(
                f"{lesion} does not fit: there are blocks 0 to {intact[-1]}; those of equal "
                f"structure, which may be exchanged, are {groups}."
            )
    plain, network = subjects.is_plain(weights), subjects.network(weights)
    switched = subjects.switched(weights, PassThrough) if plain else None
    errors = []
    for lesion in subjects.track(lesions, weights.card.source):
        kept = np.array([block not in lesion.deleted for block in intact], np.float32)
        options = {"permutation": np.array(lesion.order or intact)}
        if switched:
            network = switched(kept)
        else:
            options["multipliers"] = kept
        score = functools.partial(_score, network, options)
        total = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        errors.append(total.error_percent)
    return np.asarray(errors)


@jax.jit
def _score(network: Network, options: dict[str, Array], images: Array, labels: Array) -> exact.Sums:
    apply, *inputs = network
    lesioned = functools.partial(apply, **options)
    return exact.score_batch(*inputs, images, labels, apply=lesioned)


def by_number(errors: Errors, kind: Kind) -> dict[int, list[float]]:
    """Returns the errors after lesions of a kind by number of blocks or pairs."""
    groups: dict[int, list[float]] = {}
    for lesion, error in errors:
        if lesion.kind == kind:
            groups.setdefault(lesion.number, []).append(error)
    return groups


def describe(results: Mapping[str, Errors], images: int, seconds: Mapping[str, float]) -> Finding:
    """Returns tables and numbers."""
    summary, by_numbers = [], []
    for name, errors in results.items():
        one = [error for lesion, error in errors if lesion.kind == "one"]
        summary.append(
            {
                "network": name,
                "images": images,
                "blocks": len(one),
                "intact, error %": errors[0][1],
                "one deleted, median": np.median(one),
                "maximum": max(one),
                "of block": np.argmax(one),
                "lesions": len(errors),
                "seconds": seconds[name],
            }
        )
        rows = [
            {
                "lesion": f"{number} {verb}",
                "error %, median": np.median(values),
                "minimum": min(values),
                "maximum": max(values),
            }
            for kind, verb in (("several", "deleted"), ("exchanged", "exchanged"))
            for number, values in by_number(errors, kind).items()
        ]
        by_numbers.append(subjects.table(f"{name}, by number of blocks or pairs", rows))
    return Finding(
        name="lesions",
        title="Lesions",
        caption="Error after each block is deleted alone (thin: none), after several are deleted "
        "at once (median, range), and after pairs are exchanged; "
        f"{images:,} images. After Veit et al. 2016, Section 4.",
        tables=(subjects.table("error after lesions", summary), *by_numbers),
        rows=[
            {
                "network": name,
                "lesion": lesion.kind,
                "blocks": " ".join(map(str, lesion.deleted or lesion.order)),
                "number": lesion.number,
                "tau": lesion.tau,
                "error percent": error,
            }
            for name, errors in results.items()
            for lesion, error in errors
        ],
    )


def draw(results: Mapping[str, Errors]) -> Figure:
    """Draws errors after one deletion, several (Figure 5a), and exchanges (Figure 5b)."""
    labels = "block deleted", "blocks deleted at once", "Kendall's tau of the block order"
    figure, panels = plots.panels(*labels, sharey=True)
    for name, errors, style in plots.styled(results):
        one = [error for lesion, error in errors if lesion.kind == "one"]
        panels[0].plot(one, label=name, **style)
        panels[0].axhline(errors[0][1], color=style["color"], linewidth=0.6)
        several = by_number(errors, "several")
        numbers, values = list(several), list(several.values())
        panels[1].plot(numbers, list(map(np.median, values)), **style)
        plots.fill(panels[1], numbers, list(map(min, values)), list(map(max, values)), style)
        exchanged = [(lesion.tau, error) for lesion, error in errors if lesion.kind == "exchanged"]
        if exchanged:
            panels[2].plot(*np.transpose(exchanged), **style | {"linestyle": "none"}, alpha=0.7)
    panels[0].set_ylabel("error (%)")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    panels[2].invert_xaxis()
    return figure
