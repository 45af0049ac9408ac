"""Experiments as JSON: fingerprints and differences."""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from resnet_jax import configured
from resnet_jax.configured import Configured
from resnet_jax.errors import UserError
from resnet_jax.training.experiment import Experiment

# Name and execution do not change what an experiment computes.
NOT_IDENTITY = ("name", "checkpointing", "execution", "start", "loading")


def resolve(value: Any) -> Any:
    """Converts dataclasses, tuples and classes to JSON values; a class becomes ``module:Class`` or ``module:Class(arg=value)``."""
    if isinstance(value, type | Configured):
        return configured.text(value)
    if dataclasses.is_dataclass(value):
        return {field.name: resolve(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [resolve(item) for item in value]
    return value


def identity(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Returns the fields that decide every bit of a result, and the seed. Folders of files are left out."""
    start = experiment.start
    kept = {name: _without_folders(value) for name, value in resolve(experiment).items() if name not in NOT_IDENTITY}
    return kept | ({"start": {"digest": start.digest, "new_head": start.new_head}} if start.file else {}) | {"seed": seed}


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return re.sub(r"^.*/(?=[^/]+\.py:\w)", "", value) if isinstance(value, str) else value


def fingerprint(identity: dict[str, Any]) -> str:
    """sha256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def group(identity: dict[str, Any]) -> str:
    """Fingerprint of an identity without its seed."""
    return fingerprint({name: value for name, value in identity.items() if name != "seed"})


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yields ``field: OURS asked for, THEIRS in the run`` for every leaf that differs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif ours != theirs:
        yield f"{path}: {ours!r} asked for, {theirs!r} in the run"


def restore(annotation: Any, value: Any) -> Any:
    """Inverse of ``resolve``. Raises UserError for an unknown or missing field, or a class that cannot be found."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if value is None:
        return None
    if origin is type or Configured in arguments:
        return configured.parse(value)
    if origin in (typing.Union, types.UnionType):
        return restore(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        return tuple(restore(arguments[0], item) for item in value)
    if not dataclasses.is_dataclass(annotation):
        return value
    hints = typing.get_type_hints(annotation)
    try:
        return annotation(**{name: restore(hints.get(name), item) for name, item in value.items()})  # pyright: ignore[reportCallIssue]
    except TypeError as error:
        raise UserError(f"{error}: the run was made by another version of resnet_jax") from error
