"""Lesions of trained networks: blocks deleted and exchanged. Veit et al. 2016 (arXiv 1605.06431), Section 4."""

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
from resnet_jax.analysis import subjects as subjects_lib
from resnet_jax.analysis.subjects import PassThrough, Switched
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Sums
from resnet_jax.models import Apply
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.weights.loading import Pretrained

Kind = Literal["none", "one", "several", "exchanged"]


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Error after blocks are deleted, alone and together, and pairs exchanged (Veit et al. 2016, Section 4).
    A deleted block of a plain network passes its input through.
    """

    deleted: int = 20
    """Maximum number of blocks deleted at once."""
    exchanged: int = 20
    """Maximum number of pairs exchanged."""
    draws: int = 10
    """Random lesions per number."""
    seed: int = 0


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze lesions``."""
    if options.draws < 1 or min(options.deleted, options.exchanged) < 0:
        raise UserError(
            "--draws must be at least 1, --deleted and --exchanged at least 0, got "
            f"{options.draws}, {options.deleted} and {options.exchanged}."
        )

    def errors(weights: Pretrained, examples: Examples) -> list[tuple[Lesion, float]]:
        numbers = options.deleted, options.exchanged, options.draws, options.seed
        lesions = plan(weights.build().exchangeable(), *numbers)
        return list(
            zip(
                lesions,
                measure(weights, examples, lesions, batch_size=options.batch_size).tolist(),
                strict=True,
            )
        )

    subjects.analyze(options, arguments, errors, describe, draw)


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
    def tau(self) -> float:
        """Kendall's rank correlation between the order and the original one."""
        correlation: Any = (
            stats.kendalltau(range(len(self.order)), self.order) if self.order else (1.0, 0.0)
        )
        return float(correlation[0])


def plan(
    exchangeable: Sequence[range],
    most_deleted: int = 20,
    most_exchanged: int = 20,
    draws: int = 10,
    seed: int = 0,
) -> list[Lesion]:
    """Returns the lesions of the paper: none, each block alone, 1, 2, ... at once (Figure 5a), 1, 2, ... exchanges (5b).

    ``exchangeable`` has the ranges of blocks of equal structure, see ``ResNet.exchangeable``; at least one block is left.
    """
    blocks = exchangeable[-1].stop
    rng = np.random.default_rng(seed)
    lesions = [Lesion("none"), *(Lesion("one", (block,)) for block in range(blocks))]
    for count in range(1, min(most_deleted, blocks - 1) + 1):
        for _ in range(draws):
            lesions.append(
                Lesion("several", tuple(sorted(rng.choice(blocks, count, replace=False).tolist())))
            )
    pairs = [(i, j) for group in exchangeable for i in group for j in group if i < j]
    for count in range(1, most_exchanged + 1 if pairs else 1):
        for _ in range(draws):
            order = list(range(blocks))
            for number in rng.integers(len(pairs), size=count):
                i, j = pairs[number]
                order[i], order[j] = order[j], order[i]
            lesions.append(Lesion("exchanged", order=tuple(order), pairs=count))
    return lesions


def measure(
    weights: Pretrained, examples: Examples, lesions: Sequence[Lesion], *, batch_size: int = 200
) -> Float[np.ndarray, "lesions"]:
    """Returns the error after each lesion in percent; all lesions share one compiled program.

    A block is deleted by a factor of 0 on its branch, a block of a plain network by ``PassThrough``.
    """
    variables, constants = subjects.inputs(weights, examples)
    network, groups = weights.architecture, weights.build().exchangeable()
    blocks = sum(network.stages)
    for lesion in lesions:
        if lesion.deleted and not 0 <= min(lesion.deleted) <= max(lesion.deleted) < blocks:
            raise UserError(
                f"blocks to delete must be in 0 to {blocks - 1}, got {list(lesion.deleted)}."
            )
        # The compiled program does not check its order.
        if lesion.order and any(
            sorted(lesion.order[group.start : group.stop]) != list(group) for group in groups
        ):
            raise UserError(
                f"the order {list(lesion.order)} exchanges blocks of unequal structure. Exchangeable: {groups}."
            )
    apply = (
        subjects_lib.network(network, PassThrough)
        if subjects_lib.is_plain(network)
        else weights.apply()
    )
    errors = []
    for lesion in subjects.track(lesions, weights.card.source):
        factors = jnp.asarray([float(block not in lesion.deleted) for block in range(blocks)])
        order = jnp.asarray(lesion.order or range(blocks))
        score = functools.partial(_score, variables, constants, factors, order, apply=apply)
        total = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        errors.append(total.error_percent)
    return np.asarray(errors)


@functools.partial(jax.jit, static_argnames=("apply",))
def _score(
    variables: tuple[Any, Any],
    constants: Any,
    factors: Array,
    order: Array,
    images: Array,
    labels: Array,
    *,
    apply: Apply | Switched,
) -> Sums:
    def lesioned(params: Any, batch_stats: Any, images: Array, *, train: bool) -> tuple[Array, Any]:
        if isinstance(apply, Switched):
            return apply(params, batch_stats, images, factors, permutation=order), batch_stats
        return apply(
            params, batch_stats, images, train=train, multipliers=factors, permutation=order
        )

    return exact.score_batch(*variables, constants, images, labels, apply=lesioned)


def describe(
    results: Mapping[str, Sequence[tuple[Lesion, float]]], images: int, seconds: Mapping[str, float]
) -> Finding:
    """Returns tables and numbers."""
    summary = []
    for name, errors in results.items():
        one = [error for lesion, error in errors if lesion.kind == "one"]
        extremes = (float(np.median(one)), max(one), int(np.argmax(one)))
        summary.append(
            (name, images, len(one), errors[0][1], *extremes, len(errors), seconds[name])
        )
    headings = (
        "network",
        "images",
        "blocks",
        "intact, error %",
        "one deleted, median",
        "maximum",
        "of block",
        "lesions",
        "seconds",
    )
    return Finding(
        name="lesions",
        title="Lesions",
        caption="Error after each block is deleted alone (thin: none), after several are deleted at once (median, range), and after pairs "
        f"are exchanged; {images:,} images. After Veit et al. 2016, Section 4.",
        tables=(
            Table("error after lesions", headings, tuple(summary)),
            *(_by_number(name, errors) for name, errors in results.items()),
        ),
        rows=[
            {
                "network": name,
                "lesion": lesion.kind,
                "blocks": " ".join(map(str, lesion.deleted or lesion.order)),
                "number": len(lesion.deleted) or lesion.pairs,
                "tau": lesion.tau,
                "error percent": error,
            }
            for name, errors in results.items()
            for lesion, error in errors
        ],
    )


def _by_number(name: str, errors: Sequence[tuple[Lesion, float]]) -> Table:
    groups: dict[str, list[float]] = {}
    for lesion, error in errors:
        if lesion.kind in ("several", "exchanged"):
            groups.setdefault(
                f"{len(lesion.deleted) or lesion.pairs} {lesion.kind.replace('several', 'deleted')}",
                [],
            ).append(error)
    rows = tuple(
        (label, float(np.median(values)), min(values), max(values))
        for label, values in groups.items()
    )
    return Table(
        f"{name}, by number of blocks or pairs",
        ("lesion", "error %, median", "minimum", "maximum"),
        rows,
    )


def draw(results: Mapping[str, Sequence[tuple[Lesion, float]]]) -> Figure:
    """Draws errors after one block is deleted, several (Veit et al. 2016, Figure 5a), and pairs exchanged (Figure 5b)."""
    figure, panels = plots.panels(
        "block deleted", "blocks deleted at once", "Kendall's tau of the block order", sharey=True
    )
    for name, errors, style in plots.styled(results):
        panels[0].plot(
            *np.transpose(
                [(lesion.deleted[0], error) for lesion, error in errors if lesion.kind == "one"]
            ),
            label=name,
            **style,
        )
        panels[0].axhline(errors[0][1], color=style["color"], linewidth=0.6)
        several: dict[int, list[float]] = {}
        for lesion, error in errors:
            if lesion.kind == "several":
                several.setdefault(len(lesion.deleted), []).append(error)
        panels[1].plot(list(several), [np.median(values) for values in several.values()], **style)
        plots.fill(
            panels[1],
            list(several),
            [min(v) for v in several.values()],
            [max(v) for v in several.values()],
            style,
        )
        exchanged = [(lesion.tau, error) for lesion, error in errors if lesion.kind == "exchanged"]
        if exchanged:
            panels[2].plot(*np.transpose(exchanged), **style | {"linestyle": "none"}, alpha=0.7)
    panels[0].set_ylabel("error (%)")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    panels[2].invert_xaxis()
    return figure
