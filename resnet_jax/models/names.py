"""Short names of the parts of a network: how the command line, the ledger and the tables of results write them."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from resnet_jax import configured, references
from resnet_jax.configured import LATER, Configured, Factory
from resnet_jax.errors import UserError, nearest
from resnet_jax.models import branches, catalog, norms, orders, shortcuts, stems, transitions
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.depth import StochasticDepth
from resnet_jax.models.orders import Order

# More stages than any network has, and more characters than any part of one: a file that describes a network may be anybody's.
_STAGES, _WRITTEN = 100, 300


def known() -> dict[str, Factory]:
    """Short name to part, of every part that comes with the package."""
    found: dict[str, Factory] = {
        name: value
        for module in (branches, norms, orders, shortcuts, stems, transitions)
        for name, value in vars(module).items()
        if (isinstance(value, Configured) or (isinstance(value, type) and value.__module__ == module.__name__)) and not name.startswith("_")
    }
    return {**found, **shortcuts.OPTIONS}


def load_part(text: str, others: Mapping[str, Factory] = MappingProxyType({})) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value)``, NAME a short name, of ``others`` too, or FILE.py:CLASS.

    Raises:
      UserError: for an unknown name or argument.
    """
    return configured.parse(text, lambda name: others[name] if name in others else _load(name, others))


def name_of(value: Factory, others: Mapping[str, Factory] = MappingProxyType({})) -> str:
    """The short name of a part of ours, or of ``others``, the reference of any other; with its arguments."""
    short = {**known(), **others}
    for name, part in short.items():
        if part == value:
            return name
    return configured.text(value, lambda made: made.__name__ if short.get(made.__name__) is made else references.describe(made))


def variant(name: str, **fields: Any) -> Architecture:
    """A network of the catalog with some fields changed, parts given by their short names: ``variant("cifar_resnet110", shortcut="B")``.

    Raises:
      UserError: for an unknown name, field or part.
    """
    return dataclasses.replace(catalog.architecture(name), **_fields(fields, load_part))


def write(architecture: Architecture) -> dict[str, Any]:
    """A network as what JSON can say, parts by their short names."""
    fields = {field.name: getattr(architecture, field.name) for field in dataclasses.fields(architecture)}

    def plain(value: Any) -> Any:
        if isinstance(value, Configured | type):
            return name_of(value)
        return _depth(value) if isinstance(value, StochasticDepth) else value

    return {name: plain(value) for name, value in fields.items()}


def _depth(value: StochasticDepth) -> dict[str, Any]:
    # Cards from before, and versions that read them, do not know what came later.
    said = [f.name for f in dataclasses.fields(value) if not (f.metadata.get(LATER) and getattr(value, f.name) == f.default)]
    return {name: getattr(value, name) for name in said}


def read(written: dict[str, Any]) -> Architecture:
    """Undoes ``write``; nothing is imported for it.

    Raises:
      UserError: for a missing or unknown field, one that is not of its kind, or a part that is not this package's.
    """
    try:
        made = Architecture(**_fields(written, _parse_ours))
    except (TypeError, AttributeError) as error:
        raise UserError(f"this describes no network: {error!s:.200}") from error
    depth = made.stochastic_depth
    sane = {
        "stages": _are_sizes(made.stages) and len(made.stages) <= _STAGES,
        "features": _are_sizes(made.features),
        "input_shape": _are_sizes(made.input_shape) and len(made.input_shape) == 3,
        "stem_features": _are_sizes((made.stem_features,)),
        "num_classes": _are_sizes((made.num_classes,)),
        "output_stride": _are_sizes((made.output_stride,)),
        "dtype": made.dtype in ("float32", "bfloat16"),
        "stochastic_depth": isinstance(depth, StochasticDepth) and type(depth.survival) in (int, float) and type(depth.kept) is int,
        **{name: isinstance(getattr(made, name), type | Configured) for name, hint in _hints().items() if _is_part(hint)},
    }
    wrong = [name for name, is_sane in sane.items() if not is_sane]
    if wrong:
        raise UserError(f"this describes no network, not being of the right kind: {', '.join(wrong)}")
    return made


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int and 0 <= size < 2**31 for size in value)


def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Architecture)


def _is_part(hint: Any) -> bool:
    return hint == type[Order] or Configured in typing.get_args(hint)


def _fields(given: Mapping[str, Any], load: Callable[[str], Factory]) -> dict[str, Any]:
    hints = _hints()
    found = {}
    for field, value in given.items():
        if field not in hints:
            raise UserError(f"Architecture has no field {field!r}{nearest(field, hints)}")
        if _is_part(hints[field]) and isinstance(value, str):
            value = load(value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, dict) and dataclasses.is_dataclass(hints[field]):
            value = hints[field](**value)
        found[field] = value
    return found


def _load(name: str, others: Iterable[str] = ()) -> Any:
    return references.load(name) if ":" in name else _load_ours(name, others)


def _parse_ours(text: str) -> Factory:
    # Python's parser needs memory and time for long texts, and our own parts have short ones.
    if len(text) > _WRITTEN:
        raise UserError(f"{text[:60]}... is {len(text)} characters long, which no part of ours is")
    return configured.parse(text, _load_ours)


def _load_ours(name: str, others: Iterable[str] = ()) -> Any:
    names = known()
    if ":" in name:
        raise UserError(f"the network has a part of somebody's own, {name}: a file cannot bring code along, so give the network itself")
    if name not in names:
        raise UserError(f"{name!r} is no known class{nearest(name, [*names, *others])}; for your own write FILE.py:CLASS")
    return names[name]
