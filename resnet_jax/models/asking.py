"""Construction and calls of the parts of a network: each receives the optional arguments that its signature declares."""

from typing import Any

from flax import nnx

from resnet_jax.configured import Configured, Factory, method_parameters, parts


def make(factory: Factory, *args: Any, **offered: Any) -> Any:
    """Constructs a part from ``args`` and those of ``offered`` that its constructor names; with ``**kwargs`` it receives all."""
    return bound(factory, **offered)(*args)


def bound(factory: Factory, **offered: Any) -> Configured:
    """Returns a factory with those of ``offered`` that its constructor names and that it lacks. Equal arguments make equal factories."""
    cls, arguments = parts(factory)
    return Configured(cls, tuple(sorted((_named(cls, "__init__", offered) | arguments).items())))


def call(module: nnx.Module, *args: Any, **offered: Any) -> Any:
    """Calls a part with ``args`` and those of ``offered`` that its call names."""
    return module(*args, **_named(type(module), "__call__", offered))  # pyright: ignore[reportCallIssue]


def names(factory: Factory, argument: str) -> bool:
    """Returns whether the constructor takes an argument of this name."""
    return bool(_named(parts(factory)[0], "__init__", {argument: None}))


def _named(cls: type[Any], method: str, offered: dict[str, Any]) -> dict[str, Any]:
    parameters, open_ended = method_parameters(cls, method)
    return offered if open_ended else {name: value for name, value in offered.items() if name in parameters}
