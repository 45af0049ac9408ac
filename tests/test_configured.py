"""Classes with arguments as values: equal, hashed, checked, written and read back; on the command line too."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resnet_jax import configured as configured_lib
from resnet_jax import references
from resnet_jax.configured import Configured, Factory, configured, parse, parts, text
from resnet_jax.errors import UserError
from resnet_jax.models import names, orders
from resnet_jax.models.branches import Basic, Bottleneck, Branch
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import OPTIONS, DropoutShortcut, LearnedScalar, Scaled, ShortcutOnlyGating, ZeroPad

FILE = """
from flax import nnx


class Base(nnx.Module):
    def __init__(self, in_features, out_features, stride, rngs, power=1):
        self.power = power


class Mine(Base):
    def __init__(self, in_features, out_features, stride, rngs, scale=1.0, name="x", shape=(1, 2), **layers):
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.scale, self.name, self.shape = scale, name, shape


class Anything(nnx.Module):
    def __init__(self, *args, **kwargs):
        self.given = tuple(kwargs)


def function():
    pass


value = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


class Made:
    """Remembers what it was made with."""

    def __init__(self, first: int, second: int = 2, *, third: Any = 3):
        self.all = (first, second, third)


def test_it_makes_what_the_class_makes_with_those_arguments() -> None:
    assert configured(Made, third=5)(1).all == (1, 2, 5)
    assert configured(Made, third=5)(1, second=7).all == (1, 7, 5)
    assert configured(Made, third=5)(1, third=None).all == (1, 2, None), "what is given at the call wins"
    assert configured(Made)(1).all == (1, 2, 3)


def test_equal_classes_and_arguments_are_equal_in_any_order() -> None:
    ours = configured(Made, second=1, third="a")
    for same in (configured(Made, third="a", second=1), configured(configured(Made, third="a"), second=1), Configured(*parts_of(ours))):
        assert ours == same
        assert hash(ours) == hash(same)
    for other in (configured(Made, second=1), configured(Made, second=1, third="b"), configured(Made), Made):
        assert ours != other
    assert {ours: 1}[configured(Made, third="a", second=1)] == 1


def parts_of(value: Configured) -> tuple[type, tuple[tuple[str, Any], ...]]:
    made, arguments = parts(value)
    return made, tuple(arguments.items())


def test_configuring_again_adds_and_replaces() -> None:
    """BottleneckV15 is a bottleneck with its stride elsewhere."""
    again = configured(configured(Branch, kernels=(1, 3, 1), expansion=4), stride_at=1, expansion=2)
    assert parts(again) == (Branch, {"kernels": (1, 3, 1), "expansion": 2, "stride_at": 1})
    assert parts(Bottleneck) == (Branch, {"kernels": (1, 3, 1), "expansion": 4}), "the first is as it was"
    assert parts(ZeroPad) == (ZeroPad, {})


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (ShortcutOnlyGating, {"biass": -6}, "^ShortcutOnlyGating takes no argument 'biass'; did you mean bias"),
        (Basic, {"groupss": 2}, "^Branch takes no argument 'groupss'; did you mean groups"),
        (Scaled, {"shortcuts": 0.5}, "did you mean shortcut"),
        (Scaled, {"resizing": "pad"}, "did you mean .*resize"),
        (Made, {"zzzzzz": 1}, "there is first, second, third$"),
        (Made, {"self": 1}, "takes no argument 'self'"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest(factory: Factory, arguments: dict[str, Any], message: str) -> None:
    """Those of a base class that **layers hands on are known too."""
    with pytest.raises(UserError, match=message):
        configured(factory, **arguments)


@pytest.mark.parametrize(
    "value",
    [[1], {"a": 1}, {1}, b"x", object(), Made, 1j, (1, [2]), (1, (2, {})), float("nan"), float("inf"), (-float("inf"),)],
    ids=lambda value: type(value).__name__ + str(value)[:5],
)
def test_a_value_that_cannot_be_written_and_hashed_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"Made\(third=.*a finite number, a string, True, False, None or a tuple of those"):
        configured(Made, third=value)


VALUES = [0, -6, 0.5, -1e-5, 1e30, True, False, None, "pad", "a, b=(c)", "quo\"te's", "", (), (1,), (1, 3, 1), ((1, 2), ("x", (None, 0.5)))]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_any_value_is_read_as_it_was_written(value: Any, file: Path) -> None:
    """Through a module's name and through a file's path; with its type, which == does not tell."""
    for made, key in ((ZeroPad, "resize"), (references.load(f"{file}:Anything"), "x")):
        ours = configured(made, **{key: value})
        back = parse(text(ours))
        assert back == ours
        assert hash(back) == hash(ours)
        assert type(parts(back)[1][key]) is type(value)


def test_an_integer_for_a_float_is_written_as_one() -> None:
    """Runs are told apart by what is written: Scaled(shortcut=1) and Scaled(shortcut=1.0) are one experiment."""
    assert text(configured(Scaled, shortcut=1)) == text(configured(Scaled, shortcut=1.0))
    assert text(parse("resnet_jax.models.shortcuts:ShortcutOnlyGating(bias=-6)")).endswith("(bias=-6.0)")
    assert text(configured(Basic, groups=2)).endswith("(groups=2, kernels=(3, 3))"), "an integer stays one where one is meant"


@pytest.mark.parametrize("value", [np.float64(0.5), np.str_("pad"), (np.float64(0.25), 1)], ids=lambda value: type(value).__name__)
def test_what_numpy_derives_from_python_is_read_as_it_was_written_or_refused(value: Any) -> None:
    """A study over np.linspace hands over np.float64, which is a float; its repr is no literal."""
    try:
        ours = configured(LearnedScalar, initial=value)
    except UserError:
        return
    assert parse(text(ours)) == ours


@pytest.mark.parametrize("factory", [ZeroPad, Basic, configured(ZeroPad), configured(Branch, kernels=(3, (1,)), dropout=0.3)], ids=str)
def test_a_factory_is_read_as_it_was_written(factory: Factory) -> None:
    assert parse(text(factory)) == factory


def test_the_written_form() -> None:
    """That of JSON, of fingerprints and of messages: arguments in order of their names."""
    assert text(ZeroPad) == "resnet_jax.models.shortcuts:ZeroPad"
    assert text(configured(ZeroPad)) == "resnet_jax.models.shortcuts:ZeroPad()"
    assert text(configured(Scaled, shortcut=0.5, branch=1)) == "resnet_jax.models.shortcuts:Scaled(branch=1.0, shortcut=0.5)"
    assert str(configured(Basic, groups=2)) == "resnet_jax.models.branches:Branch(groups=2, kernels=(3, 3))"
    assert text(configured(Scaled, resize="pad"), lambda made: made.__name__.upper()) == "SCALED(resize='pad')"


def test_a_users_class_is_read_with_arguments_by_its_file(file: Path) -> None:
    mine = references.load(f"{file}:Mine")
    found = parse(f"{file}:Mine(scale=0.7, shape=(1, (2, 3)), power=2)")
    assert found == configured(mine, scale=0.7, shape=(1, (2, 3)), power=2)
    assert text(found) == f"{file}:Mine(power=2, scale=0.7, shape=(1, (2, 3)))"
    assert parse(f"{file}:Mine") is mine
    assert parse(f"{file}:Mine()") == configured(mine)
    made = found(4, 8, 2, rngs=nnx.Rngs(0))
    assert (made.scale, made.name, made.shape, made.power) == (0.7, "x", (1, (2, 3)), 2)
    with pytest.raises(UserError, match=r"^Mine takes no argument 'scal'; did you mean scale"):
        parse(f"{file}:Mine(scal=0.7)")
    assert parts(parse(f"{file}:Anything(whatever=1)"))[1] == {"whatever": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        *("(", "(initial=", "(initial=1", "(1)", "(initial)", "(**{})", "(*x)", "(initial=f())", "(initial=x)", "(initial=1)(2)"),
        *("(initial=1) + 1", "(initial=1, initial=2)", "(initial=1));import os", "(initial=[1).x", "(initial=1).y", "( )x"),
        "(initial=__import__('os'))",
    ],
)
def test_bad_text_is_answered_with_the_form(arguments: str) -> None:
    """Nothing is evaluated but literals."""
    written = f"resnet_jax.models.shortcuts:LearnedScalar{arguments}"
    with pytest.raises(UserError, match=r"cannot be read: write resnet_jax\.models\.shortcuts:LearnedScalar\(argument=value, \.\.\.\)"):
        parse(written)


@pytest.mark.parametrize("name", ["function", "value", "function()", "value(x=1)"])
def test_what_is_no_class_is_refused(name: str, file: Path) -> None:
    with pytest.raises(UserError, match=rf"{file}:(function|value) is not a class"):
        parse(f"{file}:{name}")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("nowhere.py:X(a=1)", "there is no file nowhere.py"),
        ("resnet_jax.models.shortcuts:Scald(shortcut=1)", "did you mean Scaled"),
        ("", "names no function or class"),
        ("(a=1)", "names no function or class"),
    ],
)
def test_a_class_that_is_not_there_is_said(written: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(written)


class Outer:
    def __init__(self, a: int, *, b: int = 0):
        pass

    def method(self, x: int, *, key: Any = None) -> None:
        pass


class Handing(Outer):
    def __init__(self, c: int, **rest: Any):
        super().__init__(**rest)


class Silent(Handing):
    pass


class Open:
    def __init__(self, *args: Any, **rest: Any):
        pass


@pytest.mark.parametrize(
    ("made", "names", "anything"),
    [
        (Outer, {"a", "b"}, False),
        (Handing, {"a", "b", "c"}, False),
        (Silent, {"a", "b", "c"}, False),
        (Open, set(), True),
        (object, set(), False),
    ],
)
def test_a_constructors_names_are_found_through_its_bases(made: type, names: set[str], anything: bool) -> None:
    taken, open_ended = configured_lib.constructor_parameters(made)
    assert (set(taken), open_ended) == (names, anything)


def test_names_are_those_of_python_itself() -> None:
    """Of every part of ours; NNX's metaclass hides them from inspect.signature, not from the function."""
    for made in (Branch, BatchNorm, GroupNorm, ShortcutOnlyGating):
        assert configured_lib.constructor_parameters(made)[0].keys() == inspect.signature(vars_init(made)).parameters.keys() - {"self"}
    names = configured_lib.constructor_parameters(Scaled)[0]
    assert {"shortcut", "branch", "resize", "conv", "norm", "rngs"} <= names.keys()
    assert "layers" not in names
    found, open_ended = configured_lib.method_parameters(Outer, "method")
    assert (set(found), open_ended) == ({"x", "key"}, False)


def vars_init(made: type) -> Any:
    return next(vars(base)["__init__"] for base in made.__mro__ if "__init__" in vars(base))


SHORT: dict[str, Factory] = {
    "none": OPTIONS["none"],
    "A": ZeroPad,
    "ZeroPad": ZeroPad,
    "SkipInit": configured(LearnedScalar, resize="project"),
    "Bottleneck": Bottleneck,
    "BatchNorm(group_size=64)": configured(BatchNorm, group_size=64),
    "Branch(kernels=(3, 1, 3))": configured(Branch, kernels=(3, 1, 3)),
    "Bottleneck(groups=32, base_width=4)": configured(Bottleneck, groups=32, base_width=4),
    "DropoutShortcut( rate = 0.25 )": configured(DropoutShortcut, rate=0.25),
    "SkipInit(initial=0.5)": configured(LearnedScalar, resize="project", initial=0.5),
    "A(resize='project')": configured(ZeroPad, resize="project"),
    "FullPreactivation": FullPreactivation,
}


@pytest.mark.parametrize("written", SHORT)
def test_short_names_are_read_with_arguments_and_written_back(written: str) -> None:
    """A, Bottleneck and the like, as the command line takes them; what it prints in its help can be typed."""
    assert names.load_part(written) == SHORT[written]
    assert names.load_part(names.name_of(SHORT[written])) == SHORT[written]


def test_short_names_are_printed_where_there_are_some(file: Path) -> None:
    assert names.name_of(Bottleneck) == "Bottleneck"
    assert names.name_of(configured(Bottleneck, groups=2)) == "Branch(expansion=4, groups=2, kernels=(1, 3, 1))"
    assert names.name_of(references.load(f"{file}:Mine")) == f"{file}:Mine"
    assert names.name_of(configured(references.load(f"{file}:Mine"), scale=2)) == f"{file}:Mine(scale=2)"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("E", "'E' is no known class; "),
        ("Botleneck", "did you mean Bottleneck"),
        ("Scalde(shortcut=1)", "'Scalde' is no known class; did you mean .*Scaled.*; for your own write FILE.py:CLASS"),
        ("ShortcutOnlyGating(bia=1)", "ShortcutOnlyGating takes no argument 'bia'; did you mean bias"),
        ("Scaled(shortcut=)", r"cannot be read: write Scaled\(argument=value"),
        ("Scaled(0.5)", r"cannot be read"),
    ],
)
def test_a_short_name_that_is_none_is_answered_with_the_nearest(written: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names.load_part(written)


def test_every_known_name_reads_as_itself_and_no_two_parts_share_one() -> None:
    known = names.known()
    assert {"Basic", "Bottleneck", "BottleneckV15", "SingleLayer", "BatchNorm", "FrozenBatchNorm", "GroupNorm", "NoNorm"} <= known.keys()
    assert {"SmallImageStem", "ImageNetStem", "DeepStem", "NoTransition", "DenseTransition", "Original", "Fixup"} <= known.keys()
    assert OPTIONS.keys() <= known.keys()
    for name, value in known.items():
        assert names.load_part(name) == value
        assert names.load_part(names.name_of(value)) == value
    assert issubclass(known["Fixup"], orders.Order)  # pyright: ignore[reportArgumentType]
