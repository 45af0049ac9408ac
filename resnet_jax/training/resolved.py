"""The resolved form of an experiment: plain JSON, its fingerprint, and what differs between two."""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from resnet_jax import configured
from resnet_jax.configured import LATER, Configured
from resnet_jax.errors import UserError
from resnet_jax.training.experiment import Experiment

# What it is called and how it is executed: neither changes what it computes.
NOT_IDENTITY = ("name", "checkpointing", "execution", "start", "loading")


def resolve(value: Any) -> Any:
    """Turns dataclasses, tuples and classes into what JSON can say; a class becomes ``module:Class`` or ``module:Class(arg=value)``."""
    if isinstance(value, type | Configured):
        return configured.text(value)
    if dataclasses.is_dataclass(value):
        said = [f for f in dataclasses.fields(value) if not (f.metadata.get(LATER) and getattr(value, f.name) == f.default)]
        return {f.name: resolve(getattr(value, f.name)) for f in said}
    if isinstance(value, tuple | list):
        return [resolve(item) for item in value]
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    return value


def identity(experiment: Experiment, seed: int) -> dict[str, Any]:
    """The part of the resolved experiment that decides every bit of its result, with the seed."""
    return {k: _without_folders(v) for k, v in resolve(experiment).items() if k not in NOT_IDENTITY} | _start(experiment) | {"seed": seed}


def _start(experiment: Experiment) -> dict[str, Any]:
    # The same weights are the same wherever they lie.
    start = experiment.start
    return {"start": {"digest": start.digest, "new_head": start.new_head}} if start.file else {}


def _without_folders(value: Any) -> Any:
    # A user's class is the same wherever its file lies and whichever folder the command runs in.
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return re.sub(r"^.*/(?=[^/]+\.py:\w)", "", value) if isinstance(value, str) else value


def fingerprint(identity: dict[str, Any]) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def group(identity: dict[str, Any]) -> str:
    """Fingerprint of an identity without its seed: runs of one group differ in nothing else."""
    return fingerprint({name: value for name, value in identity.items() if name != "seed"})


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yields ``field: OURS here, THEIRS there`` for every leaf that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif ours != theirs:
        yield f"{path}: {ours!r} asked for, {theirs!r} in the run"


def restore(annotation: Any, value: Any) -> Any:
    """Undoes ``resolve`` for a value of the annotated type: dataclasses, optional values, tuples, classes and plain values.

    Raises:
      UserError: for a field that this version does not know, or a class that cannot be found.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if value is None:
        return None
    if origin is type or Configured in arguments:
        return configured.parse(value)
    if origin in (typing.Union, types.UnionType):
        return restore(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        element = arguments[0]
        return tuple(restore(element, item) for item in value)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        unknown = value.keys() - hints.keys()
        if unknown:
            name = getattr(annotation, "__name__", annotation)
            raise UserError(f"{name} has no field {', '.join(sorted(unknown))}: the run was made by another version of resnet_jax")
        required = {f.name for f in dataclasses.fields(annotation) if f.default is f.default_factory is dataclasses.MISSING}
        if required - value.keys():
            missing = ", ".join(sorted(required - value.keys()))
            raise UserError(
                f"{getattr(annotation, '__name__', annotation)} lacks {missing}: the run was made by another version of resnet_jax"
            )
        return annotation(**{name: restore(hints[name], item) for name, item in value.items()})  # pyright: ignore[reportCallIssue]
    return value
