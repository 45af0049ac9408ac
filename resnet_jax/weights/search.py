"""Search for the network in a file: dictionary, prefix and convention under which it fits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from resnet_jax.errors import UserError, printable, require
from resnet_jax.weights.names import CONVENTIONS, Convention, convention

_AVERAGED = re.compile(r"(^|[._])(ema|avg|averaged?|swa|shadow)([._]|$)")
_TRUNK = re.compile(r"((conv|bn)\d|layer\d+|features|resnet)\.|(conv|bn)\d\.?\w*$")
# First convolution of the blocks of each family, and the other family's classifier, a head here.
_FIRST = {
    "layer1.0.conv1.weight": "classifier.",
    "features.denseblock1.denselayer1.conv1.weight": "fc.",
}


@dataclass(frozen=True)
class Choice:
    """A network in a file."""

    key: str
    """Of its dictionary, such as ``state_dict``."""
    prefix: str
    """Of its names, such as ``module.``."""
    convention: Convention
    sources: Mapping[str, str]
    """torchvision's names to those of the file."""
    heads: tuple[str, ...]
    """Names under the prefix that no residual network has."""
    outside: tuple[str, ...]
    """Names without the prefix."""

    @property
    def is_averaged(self) -> bool:
        return bool(_AVERAGED.search(f"{self.key}.{self.prefix}"))

    def source(self, name: str) -> str:
        """Returns the file's name of a tensor, also of a missing one."""
        return self.sources.get(name) or self.prefix + (self.convention.name_of(name) or name)

    def options(self, others: Sequence["Choice"] = ()) -> str:
        """Returns the options that choose it among others and leave out what does not fit."""
        words = []
        if any(other.key != self.key for other in others):
            words.append(f"--key {printable(self.key) or repr('')}")
        if self.outside:
            words.append(f"--prefix {printable(self.prefix) or repr('')}")
        if self.heads:
            words.append("--no-head")
        return " ".join(words)


def find(
    groups: Mapping[str, Iterable[str]],
    names: str = "",
    key: str | None = None,
    prefix: str | None = None,
) -> tuple[Choice, list[str]]:
    """Returns the network of a file, and a line on each other one.

    Plain weights go before averaged ones (EMA), then networks of which every name fits.

    Args:
      groups: names of the tensors of every dictionary.
      names: convention of the names; empty: that which has the most of them.
      key: dictionary of the network.
      prefix: prefix of the network.
    """
    allowed = [convention(names)] if names else list(CONVENTIONS.values())
    every = [one for key, group in groups.items() for one in _choices(key, list(group), allowed)]
    choices = [
        one
        for one in every
        if key in (None, one.key)
        if prefix is None or one.prefix.rstrip(".") == prefix.rstrip(".")
    ]
    if not choices:
        some = printable(", ".join([name for group in groups.values() for name in group][:5]))
        known = f"the names of {names or ', '.join(CONVENTIONS)}"
        require(bool(every), f"has no network in {known}, but {some or 'nothing'}")
        raise UserError(f"has no such --key or --prefix, but:{_listed(every, every)}")
    plain = [one for one in choices if not one.is_averaged] or choices
    averaged = {
        (one.key, name)
        for one in every
        if one.is_averaged and one not in plain
        for name in (*one.sources.values(), *one.heads)
    }
    plain = [
        replace(one, outside=tuple(n for n in one.outside if (one.key, n) not in averaged))
        for one in plain
    ]
    whole = [one for one in plain if not (one.heads or one.outside)]
    if len(plain) > 1 and len(whole) != 1:
        raise UserError(f"holds several networks. Give the options of one:{_listed(plain, every)}")
    choice = plain[0] if len(plain) == 1 else whole[0]
    others = [one for one in every if (one.key, one.prefix) != (choice.key, choice.prefix)]
    kinds = ("another network", "averaged weights (EMA)")
    return choice, [f"also holds {kinds[one.is_averaged]}: {one.options(every)}" for one in others]


def _listed(choices: Sequence[Choice], others: Sequence[Choice]) -> str:
    return "".join(f"\n{choice.options(others) or 'no option'}" for choice in choices)


def _choices(key: str, names: Sequence[str], allowed: Sequence[Convention]) -> Iterator[Choice]:
    prefixes: dict[str, list[Convention]] = {}
    for one in allowed:
        for name in names:
            anchor = next((anchor for anchor in one.anchors if name.endswith(anchor)), None)
            prefix = name.removesuffix(anchor or "")
            if anchor and (prefix == "" or prefix.endswith(".")):
                prefixes.setdefault(prefix, []).append(one)
    for prefix, conventions in prefixes.items():
        inside = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        known = [{short: one.standard(short) for short in inside} for one in conventions]
        best = max(range(len(known)), key=lambda i: sum(map(bool, known[i].values())))
        # Names of the trunk that the convention lacks keep theirs.
        ours = {s: ours or s for s, ours in known[best].items() if ours or _TRUNK.match(s)}
        for first in _FIRST.keys() & {*ours.values()}:
            ours = {s: one for s, one in ours.items() if not one.startswith(_FIRST[first])}
            yield Choice(
                key,
                prefix,
                conventions[best],
                {standard: inside[short] for short, standard in ours.items()},
                tuple(name for short, name in inside.items() if short not in ours),
                tuple(name for name in names if not name.startswith(prefix)),
            )
