"""What happens inside a network: the inputs and outputs of its units and of their parts, by name, from a model that is left as it is.

``unit3`` is the output of the fourth unit, counted through all stages, ``unit3/input`` what it was given, ``unit3/branch`` its branch,
``unit3/branch/after/0/layers/0`` the first layer behind the branch's first convolution; outside of units ``stem``, ``stem/conv``, ``head``.
"""

import contextlib
import contextvars
import fnmatch
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Apply, Variables
from resnet_jax.models.execution import Stack
from resnet_jax.models.resnet import ResNet

INPUT = "/input"
"""Behind a name: what the part was given."""


def of(
    apply: Apply, params: Variables, batch_stats: Variables, images: Array, names: Sequence[str], *, train: bool = False, **options: Any
) -> tuple[Array, dict[str, Array]]:
    """Logits of a network, and named activations. To be traced, inside ``jax.jit``.

    Args:
      apply, params, batch_stats: the network and its variables.
      images: as the network takes them.
      names: patterns of ``fnmatch``: ``unit*/branch``, ``unit3/input``, ``stem``; a star stands for slashes too.
      train, options: key, multipliers, permutation, as of ``Apply``.

    Raises:
      UserError: for a pattern that nothing has as its name; it says what there is.
    """
    model: Any = nnx.merge(apply.graphdef, params, batch_stats, copy=True)
    with recorded(model, names) as found:
        logits = model(images, train, **options)
    return logits, dict(found)


@contextlib.contextmanager
def recorded(model: ResNet, names: Sequence[str] = ("*",)) -> Iterator[dict[str, Array]]:
    """Fills the dictionary that it yields while the model is called; of a part that is called several times the last call counts.

    Units run one after another within it, whatever the execution says: a scan keeps to itself what happens inside.

    Raises:
      UserError: in the end, for a pattern that nothing has as its name.
    """
    parts: list[tuple[Path, Any]] = [
        (path, part) for path, part in nnx.iter_modules(model) if path and not isinstance(part, Stack | nnx.List)
    ]
    stacks = {path: part for path, part in nnx.iter_modules(model) if isinstance(part, Stack)}
    recorder, execution = _Recorder(tuple(names), _places(stacks)), [(each, each.scan, each.remat) for each in stacks.values()]
    try:
        for path, part in parts:
            part._recorded_as = path
            object.__setattr__(part, "__class__", _recording(type(part)))
        for stack in stacks.values():
            stack.scan = stack.remat = False
        token = _active.set(recorder)
        try:
            yield recorder.found
        finally:
            _active.reset(token)
    finally:
        for stack, scan, remat in execution:
            stack.scan, stack.remat = scan, remat
        for _, part in parts:
            object.__setattr__(part, "__class__", type(part).__mro__[1])
            del part._recorded_as
    for pattern in names:
        if not fnmatch.filter(recorder.seen, pattern):
            there = sorted(recorder.seen, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
            raise UserError(f"no activation is called {pattern!r}; there are {', '.join(there)}")


Path = tuple[Any, ...]


@dataclass
class _Recorder:
    names: tuple[str, ...]
    places: dict[Path, tuple[int, int]]
    """Number of the first unit of every stack, and how many it has."""
    found: dict[str, Array] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    entered: dict[Path, int] = field(default_factory=dict)

    def enter(self, path: Path) -> str:
        """The name of a part that is called now."""
        for stack, (first, count) in self.places.items():
            if path[: len(stack)] == stack:
                if path == (*stack, "stacked"):
                    self.entered[stack] = (self.entered.get(stack, -1) + 1) % count
                return "/".join((f"unit{first + self.entered[stack]}", *map(str, path[len(stack) + 1 :])))
        return "/".join(map(str, path))

    def keep(self, name: str, value: Any) -> None:
        self.seen.add(name)
        if isinstance(value, jax.Array) and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.names):
            self.found[name] = value


_active: contextvars.ContextVar[_Recorder] = contextvars.ContextVar("recorder")


@functools.cache
def _recording(part: type[nnx.Module]) -> type[nnx.Module]:
    """The class of a part that tells the recorder what it is given and what it returns."""
    call: Any = part.__call__  # pyright: ignore[reportAttributeAccessIssue]

    # Parts are handed the arguments that their calls name: this one names the same.
    @functools.wraps(call)
    def told(self: Any, x: Any, *args: Any, **given: Any) -> Any:
        recorder = _active.get()
        name = recorder.enter(self._recorded_as)
        recorder.keep(name + INPUT, x)
        returned = call(self, x, *args, **given)
        recorder.keep(name, returned)
        return returned

    return type(part.__name__, (part,), {"__call__": told, "__module__": part.__module__})


def _places(stacks: dict[Path, Stack]) -> dict[Path, tuple[int, int]]:
    found, first = {}, 0
    for path in sorted(stacks, key=lambda path: path[1:]):
        found[path] = first, stacks[path].count
        first += stacks[path].count
    return found
