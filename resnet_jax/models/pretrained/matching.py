"""Tensors of a file held against those of a network: each has its place, or nothing is loaded."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.naming import Place
from resnet_jax.tensors.stored import Stored, shown

_SHOWN = 12


class Unaccounted(UserError):
    """A network without some of its tensors, or tensors without a network."""


@dataclass(frozen=True)
class Row:
    """What one tensor of a network was read from."""

    name: str
    """Ours."""
    shape: tuple[int, ...]
    """In the file."""
    source: str
    """Name in the file; empty where it was drawn anew."""


@dataclass(frozen=True)
class Found:
    """The tensors of a file by the names of ``Place``."""

    tensors: Mapping[str, Stored]
    sources: Mapping[str, str]
    """Their names in the file."""
    beside: frozenset[str] = frozenset()
    """Those that are no weights of the network and that nothing has to be made of."""
    change: Callable[[str, np.ndarray], np.ndarray] = field(default=lambda _, array: array)
    """Name and array to what the network has there, in the file's layout."""


def unfit(places: Iterable[Place], found: Found) -> list[Place]:
    """Places whose tensor is missing or of another shape."""
    return [p for p in places if p.name not in found.tensors or found.tensors[p.name].shape != p.shape]


def account(places: list[Place], found: Found, *, told: Callable[[str], str]) -> None:
    """Raises Unaccounted where not every place has its tensor, and every tensor its place.

    Args:
      places: of the network.
      found: in the file.
      told: a place's name to what the file would call it.
    """
    known = {place.name for place in places} | found.beside
    missing = [place for place in places if place.name not in found.tensors]
    extra = sorted((found.sources[name], stored.shape) for name, stored in found.tensors.items() if name not in known)
    unexpected = [name for name, _ in extra]
    misshaped = [place for place in unfit(places, found) if place.name in found.tensors]
    parts = [
        _listed("missing", missing, lambda p: f"{told(p.name)} {p.shape}{_nearest(told(p.name), unexpected)}"),
        _listed("unexpected", extra, lambda named: f"{shown(named[0])} {named[1]}"),
        _listed("mis-shaped", misshaped, lambda p: f"{shown(found.sources[p.name])} {found.tensors[p.name].shape}, expected {p.shape}"),
    ]
    if any(parts):
        hint = ""
        if any(place.is_head for place in misshaped + missing) and all(place.is_head for place in misshaped + missing) and not unexpected:
            hint = "\nOnly the classifier does not fit: --allow-new-head draws a new one"
        raise Unaccounted("its tensors are not those of the network, and nothing was loaded." + "".join(parts) + hint)


def fill(places: Iterable[Place], found: Found, targets: Mapping[str, Mapping[tuple[Any, ...], np.ndarray]]) -> list[Row]:
    """Writes every tensor into its place of ``targets``: part and path to a float32 array of ours.

    Raises:
      UserError: for values that are no numbers, not finite, or a negative variance.
    """
    rows = []
    for place in places:
        source = found.sources[place.name]
        array = found.change(place.name, numbers(found.tensors[place.name], source))
        # What a file says beside a tensor may have changed it.
        _check(array, source, is_variance=place.path[-1] == "var")
        target = targets[place.part][place.path]
        if place.unit is None:
            target[...] = place.from_file(array)
        else:
            target[place.unit] = place.from_file(array)
        rows.append(Row(place.ours, place.shape, source))
    return rows


def numbers(stored: Stored, source: str) -> np.ndarray:
    """Reads a tensor as float32. Raises UserError for what is no floating-point number, or not finite."""
    if not np.issubdtype(stored.dtype, np.floating) and stored.dtype.name != "bfloat16":
        raise UserError(f"{source} holds {stored.dtype.name}, which is no kind of weight: quantised or damaged")
    with np.errstate(over="ignore"):
        array = stored.read().astype(np.float32)
    _check(array, source, is_variance=False)
    return array


def _check(array: np.ndarray, source: str, *, is_variance: bool) -> None:
    wrong = int(np.count_nonzero(~np.isfinite(array)))
    if wrong:
        raise UserError(f"{source} has {wrong} of {array.size} values that are not finite: the file is damaged, or of a run that diverged")
    if is_variance and array.size and array.min() < 0:
        raise UserError(f"{source} is a variance and has values down to {array.min():.3g}: it cannot be negative")


def _nearest(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others[:500], n=1, cutoff=0.8)
    return f" (is it {shown(close[0])}?)" if close else ""


def _listed(what: str, entries: Sequence[Any], line: Callable[[Any], str]) -> str:
    more = f"\n  and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"\n{len(entries)} {what}:\n  " + "\n  ".join(map(line, entries[:_SHOWN])) + more if entries else ""
