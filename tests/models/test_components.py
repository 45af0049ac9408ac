"""Classes with arguments as values: equal, hashed, checked, written and read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.models.blocks import Basic, Bottleneck, Branch
from resnet_jax.models.components import Factory, component, parse, parts, text
from resnet_jax.models.shortcuts import LearnedScalar, Scaled, ShortcutOnlyGating, ZeroPad

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
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


class Made:
    def __init__(self, first: int, second: int = 2, *, third: Any = 3):
        self.all = (first, second, third)


def test_call_makes_an_instance_with_the_arguments() -> None:
    assert component(Made, third=5)(1).all == (1, 2, 5)
    assert component(Made, third=5)(1, third=None).all == (1, 2, None), "arguments of the call win"
    again = component(component(Branch, kernels=(1, 3, 1), expansion=4), stride_at=1, expansion=2)
    assert parts(again) == (Branch, {"kernels": (1, 3, 1), "expansion": 2, "stride_at": 1})
    assert parts(Bottleneck) == (Branch, {"kernels": (1, 3, 1), "expansion": 4}), "the first is unchanged"
    assert parts(ZeroPad) == (ZeroPad, {})


def test_equality_is_by_class_and_arguments() -> None:
    ours = component(Made, second=1, third="a")
    for same in (component(Made, third="a", second=1), component(component(Made, third="a"), second=1)):
        assert (ours, hash(ours)) == (same, hash(same))
    for other in (component(Made, second=1), component(Made, second=1, third="b"), component(Made), Made):
        assert ours != other


def test_unknown_argument_names_the_nearest() -> None:
    """Arguments that **layers passes to a base class are known."""
    cases: list[tuple[Factory, dict[str, Any], str]] = [
        (ShortcutOnlyGating, {"biass": -6}, "^ShortcutOnlyGating takes no argument 'biass'; did you mean bias"),
        (Scaled, {"resizing": "pad"}, "did you mean .*resize"),
        (Made, {"zzzzzz": 1}, "there is first, second, third$"),
        (Made, {"self": 1}, "takes no argument 'self'"),
    ]
    for factory, arguments, message in cases:
        with pytest.raises(UserError, match=message):
            component(factory, **arguments)


def test_argument_that_is_no_literal_is_rejected() -> None:
    for value in ([1], {"a": 1}, b"x", object(), Made, 1j, (1, [2]), float("nan"), (-float("inf"),), np.float64(0.5)):
        with pytest.raises(UserError, match=r"Made\(third=.*a finite number, a string, True, False, None or a tuple"):
            component(Made, third=value)


def test_any_value_is_read_as_written(file: Path) -> None:
    """The type is equal too, which == does not compare."""
    for value in (0, -6, 0.5, -1e-5, 1e30, True, None, "pad", "a, b=(c)", "quo\"te's", "", (), (1,), ((1, 2), ("x", (None, 0.5)))):
        for made, key in ((ZeroPad, "resize"), (components.load(f"{file}:Anything"), "x")):
            ours = component(made, **{key: value})
            back = parse(text(ours))
            assert (back, hash(back)) == (ours, hash(ours))
            assert type(parts(back)[1][key]) is type(value)


def test_written_form() -> None:
    """That of JSON, fingerprints and messages: arguments in order of their names; an integer for a float is written as a float."""
    assert text(ZeroPad) == "resnet_jax.models.shortcuts:ZeroPad"
    assert text(component(ZeroPad)) == "resnet_jax.models.shortcuts:ZeroPad()"
    assert text(component(Scaled, shortcut=0.5, branch=1)) == "resnet_jax.models.shortcuts:Scaled(branch=1.0, shortcut=0.5)"
    assert str(component(Basic, groups=2)) == "resnet_jax.models.blocks:Branch(groups=2, kernels=(3, 3))"
    assert text(component(Scaled, resize="pad"), lambda made: made.__name__.upper()) == "SCALED(resize='pad')"
    for factory in (ZeroPad, Basic, component(ZeroPad), component(Branch, kernels=(3, (1,)), dropout=0.3)):
        assert parse(text(factory)) == factory


def test_users_class_is_read_by_its_file(file: Path) -> None:
    mine = components.load(f"{file}:Mine")
    found = parse(f"{file}:Mine(scale=0.7, shape=(1, (2, 3)), power=2)")
    assert text(found) == f"{file}:Mine(power=2, scale=0.7, shape=(1, (2, 3)))"
    assert parse(f"{file}:Mine") is mine
    made = found(4, 8, 2, rngs=nnx.Rngs(0))
    assert (made.scale, made.name, made.shape, made.power) == (0.7, "x", (1, (2, 3)), 2)
    with pytest.raises(UserError, match=r"^Mine takes no argument 'scal'; did you mean scale"):
        parse(f"{file}:Mine(scal=0.7)")
    for name in ("function", "function()"):
        with pytest.raises(UserError, match="function is not a class"):
            parse(f"{file}:{name}")


def test_text_that_cannot_be_read_is_rejected() -> None:
    """Only literals are evaluated."""
    for arguments in ("(", "(initial=", "(1)", "(**{})", "(*x)", "(initial=f())", "(initial=1)(2)", "(initial=1) + 1",
                      "(initial=1, initial=2)", "(initial=1));import os", "(initial=1).y", "(initial=__import__('os'))"):  # fmt: skip
        with pytest.raises(UserError, match=r"cannot be read: write resnet_jax\.models\.shortcuts:LearnedScalar\(argument=value, \.\.\.\)"):
            parse(f"resnet_jax.models.shortcuts:LearnedScalar{arguments}")
    for written, message in (("nowhere.py:X(a=1)", "there is no file nowhere.py"), ("(a=1)", "names no function or class")):
        with pytest.raises(UserError, match=message):
            parse(written)
    assert parts(parse("resnet_jax.models.shortcuts:LearnedScalar(initial=1)")) == (LearnedScalar, {"initial": 1.0})


class Outer:
    def __init__(self, a: int, *, b: int = 0):
        pass

    def method(self, x: int, *, key: Any = None) -> None:
        pass


class Passing(Outer):
    def __init__(self, c: int, **rest: Any):
        super().__init__(**rest)


class Silent(Passing):
    pass


class Open:
    def __init__(self, *args: Any, **rest: Any):
        pass


def test_names_of_a_constructor_include_those_of_its_bases() -> None:
    for made, names, anything in (
        (Outer, {"a", "b"}, False),
        (Passing, {"a", "b", "c"}, False),
        (Silent, {"a", "b", "c"}, False),
        (Open, set(), True),
        (object, set(), False),
    ):
        taken, open_ended = components.constructor_parameters(made)
        assert (set(taken), open_ended) == (names, anything)
    # The metaclass of NNX hides the constructor from inspect.signature.
    names = components.constructor_parameters(Scaled)[0]
    assert {"shortcut", "branch", "resize", "norm", "rngs"} <= names.keys()
    assert "layers" not in names
