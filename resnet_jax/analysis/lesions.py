"""Blocks deleted and exchanged after training: Veit et al. 2016 (arXiv 1605.06431), Section 4."""

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

from resnet_jax.analysis import subjects
from resnet_jax.analysis.subjects import Columns, Network, Shortcut
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.terminal import Table
from resnet_jax.training.config import Positive
from resnet_jax.training.run_dir import Record
from resnet_jax.weights.loading import Pretrained

Kind = Literal["none", "one", "several", "exchanged"]


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Error after blocks are deleted and pairs exchanged (Veit et al. 2016, Section 4)."""

    deleted: int = 20
    """Maximum number of blocks deleted at once."""
    exchanged: int = 20
    """Maximum number of pairs exchanged."""
    draws: Positive = 10
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
        order = self.order or (0, 1)
        correlation: Any = stats.kendalltau(range(len(order)), order)
        return float(correlation.statistic)


class Errors(NamedTuple):
    """Errors of a network in percent."""

    lesions: Sequence[Lesion]
    """The first is ``none``."""
    errors: Float[np.ndarray, "lesions"]

    def by_number(self, kind: Kind) -> dict[int, list[float]]:
        """Returns the errors after lesions of a kind by number of blocks or pairs."""
        groups: dict[int, list[float]] = {}
        for lesion, error in zip(self.lesions, self.errors.tolist(), strict=True):
            if lesion.kind == kind:
                groups.setdefault(lesion.number, []).append(error)
        return groups

    def summary(self) -> Record:
        one = self.by_number("one")[1]
        return {
            "blocks": len(one),
            "intact, error %": self.errors[0],
            "one deleted, median": np.median(one),
            "maximum": max(one),
            "of block": np.argmax(one),
            "lesions": len(self.lesions),
        }

    def columns(self) -> Columns:
        return {
            "lesion": [lesion.kind for lesion in self.lesions],
            "blocks": [" ".join(map(str, one.deleted or one.order)) for one in self.lesions],
            "number": [lesion.number for lesion in self.lesions],
            "tau": [lesion.tau for lesion in self.lesions],
            "error percent": self.errors,
        }


def run(options: Options) -> subjects.Outcome:
    return subjects.analyze(
        options,
        measure,
        draw,
        tabulate_numbers,
        title="Lesions",
        heading="error after lesions",
        caption="Error after each block is deleted alone (thin: none), after several are deleted "
        "at once (median, range), and after pairs are exchanged. After Veit et al. 2016, Section "
        "4.",
    )


def measure(weights: Pretrained, examples: Examples, options: Options) -> Errors:
    lesions = plan(weights.build().exchangeable(), options)
    return Errors(lesions, score(weights, examples, lesions, batch_size=options.batch_size))


def plan(exchangeable: Sequence[range], options: Options = Options()) -> list[Lesion]:
    """Returns none, each block, 1, 2, ... blocks (Figure 5a) and 1, 2, ... exchanges (Figure 5b).

    At least one block is left. See ``ResNet.exchangeable``.
    """
    blocks, rng = exchangeable[-1].stop, np.random.default_rng(options.seed)
    lesions = [Lesion("none"), *(Lesion("one", (block,)) for block in range(blocks))]
    for count in range(1, min(options.deleted, blocks - 1) + 1):
        for _ in range(options.draws):
            deleted = sorted(rng.choice(blocks, count, replace=False).tolist())
            lesions.append(Lesion("several", tuple(deleted)))
    pairs = [(i, j) for group in exchangeable for i in group for j in group if i < j]
    for count in range(1, options.exchanged + 1 if pairs else 1):
        for _ in range(options.draws):
            order = list(range(blocks))
            for number in rng.integers(len(pairs), size=count):
                i, j = pairs[number]
                order[i], order[j] = order[j], order[i]
            lesions.append(Lesion("exchanged", order=tuple(order), pairs=count))
    return lesions


def score(
    weights: Pretrained, examples: Examples, lesions: Sequence[Lesion], *, batch_size: int = 200
) -> Float[np.ndarray, "lesions"]:
    """Returns the error after each lesion in percent; all lesions share one compiled program.

    A deleted block returns its shortcut, in a plain network its input, resized as by option A.
    """
    groups = weights.build().exchangeable()
    intact = list(range(groups[-1].stop))
    for lesion in lesions:
        order = lesion.order or intact
        fits = all(sorted(order[group.start : group.stop]) == list(group) for group in groups)
        # The compiled program checks neither.
        if not fits or not set(lesion.deleted) <= set(intact):
            raise UserError(f"{lesion} does not fit: blocks may be exchanged within {groups}.")
    parts = weights.architecture.shortcut, delete_branch
    if subjects.is_plain(weights):
        parts = ZeroPad, replace_branch
    switched, errors = subjects.switched(weights, *parts), []
    for lesion in subjects.track(lesions, weights.card.source):
        kept = np.array([block not in lesion.deleted for block in intact], np.float32)
        score = functools.partial(_score, switched(kept), np.array(lesion.order or intact))
        total = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        errors.append(total.error_percent)
    return np.asarray(errors)


@jax.jit
def _score(network: Network, order: Array, images: Array, labels: Array) -> exact.Sums:
    exchanged = functools.partial(network.apply, permutation=order)
    return exact.score_batch(*network[1:], images, labels, apply=exchanged)


def delete_branch(shortcut: Shortcut, x: Array, branch: Array, kept: Array) -> Array:
    return shortcut(x, jnp.where(kept, branch, 0))


def replace_branch(shortcut: Shortcut, x: Array, branch: Array, kept: Array) -> Array:
    return jnp.where(kept, branch, shortcut(x, jnp.zeros_like(branch)))


def tabulate_numbers(name: str, errors: Errors) -> Table:
    kinds: dict[str, Kind] = {"deleted": "several", "exchanged": "exchanged"}
    rows = tuple(
        (f"{number} {verb}", np.median(values), min(values), max(values))
        for verb, kind in kinds.items()
        for number, values in errors.by_number(kind).items()
    )
    columns = ("lesion", "error %, median", "minimum", "maximum")
    return Table(f"{name}, by number of blocks or pairs", columns, rows)


def draw(results: Mapping[str, Errors]) -> Figure:
    """Draws errors after one deletion, several (Figure 5a), and exchanges (Figure 5b)."""
    labels = "block deleted", "blocks deleted at once", "Kendall's tau of the block order"
    figure, panels = subjects.panels(labels, ["error (%)"], sharey=True)
    for (name, result), style in subjects.styled(results.items()):
        panels[0].plot(result.by_number("one")[1], label=name, **style)
        panels[0].axhline(result.errors[0], color=style["color"], linewidth=0.6)
        several = result.by_number("several")
        numbers, values = list(several), list(several.values())
        panels[1].plot(numbers, list(map(np.median, values)), **style)
        subjects.fill(panels[1], numbers, list(map(min, values)), list(map(max, values)), style)
        pairs = zip(result.lesions, result.errors, strict=True)
        exchanged = [(lesion.tau, error) for lesion, error in pairs if lesion.order]
        dots = style | {"linestyle": "none", "alpha": 0.7}
        panels[2].plot(*np.reshape(exchanged, (-1, 2)).T, **dots)
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    panels[2].invert_xaxis()
    return figure
