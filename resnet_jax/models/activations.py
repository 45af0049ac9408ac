"""Named activations of a network: inputs and outputs of its blocks and of their parts.

``block3`` is the output of the fourth block, ``block3/input`` its input; ``block3/branch``,
``block3/branch/after/0/layers/0``, ``stem/conv``, ``head`` are outputs of parts.
"""

import contextlib
import fnmatch
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from flax import nnx

from resnet_jax.errors import UserError
from resnet_jax.kernels.typing import Array
from resnet_jax.models.resnet import Apply, ResNet, Stack, Variables

INPUT = "/input"
"""Suffix of the name of a part's input."""


def of(
    apply: Apply,
    params: Variables,
    batch_stats: Variables,
    images: Array,
    names: Sequence[str],
    *,
    train: bool = False,
    **options: Any,
) -> tuple[Array, dict[str, Array]]:
    """Returns logits and named activations. To be traced; arguments as of ``Apply``.

    Args:
      names: ``fnmatch`` patterns: ``block*/branch``, ``stem``; a star matches slashes too.
    """
    model: Any = nnx.merge(apply.graphdef, params, batch_stats, copy=True)
    with recorded(model, names) as activations:
        logits = model(images, train, **options)
    return logits, dict(activations)


@contextlib.contextmanager
def recorded(model: ResNet, names: Sequence[str] = ("*",)) -> Iterator[dict[str, Array]]:
    """Yields a dictionary that calls of the model fill.

    Blocks run as a loop meanwhile: a scan hides what happens inside.
    """
    modules: dict[Any, Any] = dict(nnx.iter_modules(model))
    stacks = [(part, part.scan, part.remat) for part in modules.values() if type(part) is Stack]
    parts = [
        (path, part, type(part))
        for path, part in modules.items()
        if path and not isinstance(part, Stack | nnx.List)
    ]
    recorder = _Recorder(names, model.num_blocks)
    try:
        for path, part, cls in parts:
            part._recorder, part._path = recorder, path
            object.__setattr__(part, "__class__", _recording(cls))
        for stack, _, _ in stacks:
            stack.scan = stack.remat = False
        yield recorder.activations
    finally:
        for stack, scan, remat in stacks:
            stack.scan, stack.remat = scan, remat
        for _, part, cls in parts:
            object.__setattr__(part, "__class__", cls)
            del part._recorder, part._path
    for pattern in names:
        if not fnmatch.filter(recorder.seen, pattern):
            known = ", ".join(sorted(recorder.seen, key=_number_order))
            raise UserError(f"no activation is called {pattern!r}; there are {known}")


def _number_order(name: str) -> list[str]:
    # block2 before block10.
    return [part.zfill(9) for part in re.split(r"(\d+)", name)]


class _Recorder:
    def __init__(self, names: Sequence[str], num_blocks: int):
        self.names, self.num_blocks, self.block = names, num_blocks, -1
        self.activations: dict[str, Array] = {}
        self.seen: set[str] = set()

    def name(self, path: tuple[object, ...]) -> str:
        if path[0] != "stages":
            return "/".join(map(str, path))
        # ("stages", stage, stack, "stacked", *part of a block); blocks are called in order.
        if len(path) == 4:
            self.block = (self.block + 1) % self.num_blocks
        return "/".join((f"block{self.block}", *map(str, path[4:])))

    def keep(self, name: str, value: object) -> None:
        self.seen.add(name)
        if isinstance(value, jax.Array) and any(fnmatch.fnmatchcase(name, p) for p in self.names):
            self.activations[name] = value


@functools.cache
def _recording(cls: type) -> type:
    # The signature stays: parts are passed the arguments that their calls declare.
    @functools.wraps(cls.__call__)
    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = self._recorder
        name = recorder.name(self._path)
        recorder.keep(name + INPUT, x)
        y = cls.__call__(self, x, *args, **kwargs)
        recorder.keep(name, y)
        return y

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
