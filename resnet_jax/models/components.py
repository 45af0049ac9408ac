"""Components of a network: classes with literal arguments, equal by value.

Written as ``NAME`` or ``NAME(argument=value, ...)``, NAME short, FILE.py:CLASS or module:CLASS.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from math import isfinite
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from resnet_jax.errors import UserError, fits, nearest, require

# Prefix of the names of modules loaded from files: no installed package has it.
_FILE = "file "


def load(reference: str) -> Any:
    """Imports ``FILE.py:NAME`` or ``MODULE:NAME``."""
    place, colon, name = reference.rpartition(":")
    path = Path(place if colon else name)
    if not colon or not name:
        names = public_names(load_file(path)) if path.suffix == ".py" and path.is_file() else []
        listed = f"; it has {', '.join(names)}" if names else ""
        raise UserError(f"{reference!r} names no function or class: write FILE.py:NAME{listed}")
    module = load_file(path) if path.suffix == ".py" else _load_module(place)
    if not hasattr(module, name):
        raise UserError(f"{place} has no {name!r}{nearest(name, public_names(module))}")
    return getattr(module, name)


def public_names(module: ModuleType) -> list[str]:
    """Returns the names of public functions and classes that a module defines."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    return [name for name in own if not name.startswith("_")]


def load_file(path: Path) -> ModuleType:
    """Imports a Python file by its path, once."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        siblings = [str(path.parent / file.name) for file in resolved.parent.glob("*.py")]
        hint = nearest(str(path), siblings) if siblings else ""
        raise UserError(f"there is no file {path}{hint}")
    name = _FILE + resolved.as_posix()
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec
        assert spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{name!r} is neither a module nor a file; write FILE.py or package.module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists and lacks a dependency
        raise UserError(f"there is no module {name!r}; files are written with .py") from error


Function = Callable[..., Any]


@dataclass(frozen=True)
class Component:
    """A class or a function with some of its arguments, see ``component``."""

    cls: Function
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cls(*args, **dict(self.arguments) | kwargs)

    def __str__(self) -> str:
        return text(self)


Factory = type | Component
Part = Factory | str | functools.partial
"""A class with or without arguments, its text, or a ``functools.partial`` of it."""

Arguments = dict[str, Any]

_KNOWN: dict[str, Factory] = {}
FLAX_MODES = ("use_running_average", "deterministic")


def known() -> dict[str, Factory]:
    """Returns the package's components of a network by short name; ``catalog`` adds them."""
    return _KNOWN


def resolve(part: Part) -> Factory:
    """Returns the class, or the ``Component``, of a part."""
    if isinstance(part, str):
        return parse(part)
    if isinstance(part, functools.partial):
        if part.args:
            raise UserError(f"{part!r:.80} has positional arguments: give them by keyword.")
        factory: Any = part.func
        return component(factory, **part.keywords)
    if not isinstance(part, Factory):
        raise UserError(f"{part!r:.80} is not a class")
    return part


def parts(part: Part) -> tuple[Any, Arguments]:
    """Returns the class of a part, and its arguments."""
    factory = resolve(part)
    if isinstance(factory, Component):
        return factory.cls, dict(factory.arguments)
    return factory, {}


def component(part: Part, **arguments: object) -> Component:
    """Returns ``part`` with literal arguments: ``component(ShortcutOnlyGating, bias=-6.0)``."""
    return _bind(*parts(part), arguments)


def _bind(cls: Function, earlier: Arguments, arguments: Arguments) -> Component:
    parameters, open_ended = constructor_parameters(cls)
    for name, value in arguments.items():
        if name not in parameters and not open_ended:
            raise UserError(f"{cls.__name__} takes no argument {name!r}{nearest(name, parameters)}")
        annotation, allowed = parameters.get(name, object), ""
        if not _is_literal(value):
            allowed = "a finite number, a string, True, False, None or a tuple of those"
        elif not fits(value, annotation):
            allowed = inspect.formatannotation(annotation)
            # The unions of array types that optax and Flax annotate numbers with.
            allowed = allowed if len(allowed) < 80 else "a number"
        if allowed:
            raise UserError(f"{cls.__name__}({name}={value!r:.80}): give {allowed}")
        # Runs are compared as text, so 1 for a float is written as 1.0.
        if type(value) is int and annotation in (float, "float"):
            arguments[name] = float(value)
    return Component(cls, tuple(sorted((earlier | arguments).items())))


def _is_literal(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    # Exactly these types: `parse` cannot read the repr of NumPy's scalars.
    return type(value) in (bool, int, str, type(None)) or (type(value) is float and isfinite(value))


def make(part: Part, *args: Any, **offered: Any) -> Any:
    """Constructs a component from ``args`` and those of ``offered`` that it declares."""
    cls, arguments = parts(part)
    names, open_ended = constructor_parameters(cls)
    declared = {name: value for name, value in offered.items() if open_ended or name in names}
    module = cls(*args, **declared | arguments)
    if _needs_mode(cls) and not hasattr(module, "deterministic"):
        module.deterministic = True  # of model.train() and model.eval()
    return module


def accepted(module: Any, *, train: bool | None, **offered: Any) -> Arguments:
    """Returns the mode and those of ``offered``, as far as a module's call declares them.

    The mode is ``train``, or ``use_running_average`` and ``deterministic`` of Flax layers. None:
    that of ``model.train()`` and ``model.eval()``, resolved here for a ``train`` without None.
    """
    parameters, open_ended = _parameters(type(module), "__call__")
    evaluates = None if train is None else not train
    if train is None and _needs_mode(type(module)):
        train = not getattr(module, "deterministic", True)
    offered["train"] = train
    declared = {name: v for name, v in offered.items() if open_ended or name in parameters}
    return declared | {name: evaluates for name in FLAX_MODES if name in parameters}


def in_training(module: Any, train: bool | None) -> bool:
    """Returns ``train``, or for None the mode of the module that ``model.train()`` sets."""
    return not module.deterministic if train is None else train


def takes(module: object, name: str) -> bool:
    """Returns whether a module's call names this argument."""
    return name in _parameters(type(module), "__call__")[0]


def _needs_mode(cls: type) -> bool:
    parameters, open_ended = _parameters(cls, "__call__")
    train = parameters.get("train")
    return open_ended if train is None else train.default is not None


def constructor_parameters(cls: Function) -> tuple[dict[str, object], bool]:
    """Returns the constructor's annotations by parameter, and whether it takes any other."""
    parameters, open_ended = _parameters(cls, "__init__")
    return {
        name: object if p.annotation is p.empty else p.annotation for name, p in parameters.items()
    }, open_ended


@functools.cache
def _parameters(cls: Function, method: str) -> tuple[dict[str, Parameter], bool]:
    # inspect.signature(cls) is blind to NNX constructors; **kwargs pass on to a base class.
    names: dict[str, Parameter] = {}
    open_ended = False
    functions, own = [cls], 0
    if isinstance(cls, type):
        functions = [vars(c)[method] for c in cls.__mro__ if method in vars(c) and c is not object]
        own = 1  # self
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())[own:]
        kinds = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
        names = {p.name: p for p in parameters if p.kind in kinds} | names
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not open_ended:
            break
    return names, open_ended


def describe(thing: type | FunctionType) -> str:
    """Returns ``module:qualname``, or ``/PATH/FILE.py:qualname`` if loaded from a file."""
    return f"{thing.__module__.removeprefix(_FILE)}:{thing.__qualname__}"


def text(factory: Factory, name: Callable[..., str] = describe) -> str:
    """Writes a component, its class as ``name`` does; ``parse`` reads it."""
    cls, arguments = parts(factory)
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return name(cls) + (f"({written})" if isinstance(factory, Component) else "")


def name_of(value: Factory, others: Mapping[str, object] = {}) -> str:
    """Returns the short name or the reference of a component, with its arguments."""
    names = {**_KNOWN, **others}

    def of_class(cls: type | FunctionType) -> str:
        return cls.__name__ if names.get(cls.__name__) is cls else describe(cls)

    exact = (name for name, named in names.items() if named == value)
    return next(exact, None) or text(value, of_class)


def find(name: str, others: dict[str, Factory] | None = None) -> Any:
    """Returns the component of a short name, known or in ``others``, or of a reference."""
    if ":" in name:
        return load(name)
    names = _KNOWN | (others or {})
    if name not in names:
        hint = f"{nearest(name, names)}; for your own write FILE.py:CLASS"
        raise UserError(f"{name!r} is no known class{hint}")
    return names[name]


def parse(written: str, find: Callable[[str], object] = find) -> Factory:
    """Reads a component; ``find`` returns that of a name."""
    name, arguments = _read(written)
    factory = find(name)
    if not isinstance(factory, Factory):
        raise UserError(f"{name} is not a class")
    return factory if arguments is None else component(factory, **arguments)


def parse_function(written: str, known: Mapping[str, Function]) -> Component:
    """Reads a function of ``known`` or FILE.py:FUNCTION, with keyword arguments."""
    name, arguments = _read(written)
    function = load(name) if ":" in name else known.get(name)
    if not isinstance(function, FunctionType):
        function = getattr(function, "__wrapped__", None)  # of jax.jit
    hint = "" if ":" in name else f"{nearest(name, known)}; for your own write FILE.py:FUNCTION"
    require(isinstance(function, FunctionType), f"{name!r} is no known function{hint}")
    return _bind(typing.cast(FunctionType, function), {}, arguments or {})


def without_folder(written: str) -> str:
    """Returns a function as written, a file without its folder, so that a project can be moved."""
    name, bracket, arguments = written.partition("(")
    return f"{Path(name).name}{bracket}{arguments}"


def _read(written: str) -> tuple[str, Arguments | None]:
    """Returns name and arguments of ``NAME(argument=value)``; None without brackets."""
    name, bracket, rest = written.partition("(")
    name = name.strip()
    if not bracket:
        return name, None
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if len(arguments) < len(call.keywords) or "None" in arguments:
            raise ValueError
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        usage = f"write {name}(argument=value, ...) with numbers, strings or tuples"
        raise UserError(f"{written[:300]!r} cannot be read: {usage}") from None
    return name, arguments
