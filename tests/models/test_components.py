"""Classes with arguments as values: referred to, equal, hashed, checked, written and read."""

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError, fits
from resnet_jax.models import components
from resnet_jax.models.blocks import Basic, Bottleneck, Branch
from resnet_jax.models.components import Component, Factory, component, load, parse, parts, resolve, text
from resnet_jax.models.shortcuts import LearnedScalar, Projection, Scaled, ShortcutOnlyGating, ZeroPad

FILE = """
import math
from collections import OrderedDict
from flax import nnx

CONSTANT = 3


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
    return "called"


def _private():
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


# References --------------------------------------------------------------------------------------


def test_reference_imports_a_file_once_by_any_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a class would not equal itself."""
    assert load(f"{file}:function")() == "called"
    assert components.public_names(components.load_file(file)) == ["Base", "Mine", "Anything", "function"]
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    for path in (f"{file.parent}/../{file.parent.name}/mine.py", "mine.py", "~/mine.py"):
        assert load(f"{path}:Mine") is load(f"{file}:Mine")
    for folder in ("v1.0", "v1_0"):
        (file.parent / folder).mkdir()
        (file.parent / folder / "a.py").write_text(f"def f():\n    return {folder!r}\n")
        assert load(f"{file.parent / folder / 'a.py'}:f")() == folder


def test_missing_reference_names_the_nearest(file: Path) -> None:
    for reference, message in (
        (f"{file.parent}/mime.py:function", r"there is no file .*mime\.py; did you mean .*mine\.py"),
        (f"{file.parent}/nowhere/mine.py:f", r"there is no file .*nowhere/mine\.py$"),
        (f"{file}:fuction", r"mine\.py has no 'fuction'; did you mean function"),
        (f"{file}:zzz", "there is Anything, Base, Mine, function"),
        (str(file), r"write FILE\.py:NAME.*Base, Mine, Anything, function"),
        ("resnet_jaxx:Thing", "there is no module 'resnet_jaxx'"),
        ("resnet_jax.models.blocks.basic:Thing", "there is no module 'resnet_jax.models.blocks.basic'"),
        ("", "names no function or class"),
        (":function", "neither a module nor a file"),
        ("./mine:function", "neither a module nor a file"),
        ("mine.py:", "names no function or class"),
    ):
        with pytest.raises(UserError, match=message):
            load(reference)


def test_errors_of_a_module_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing dependency is named; a file that fails can be corrected."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lacking", "nosuchdependency_tools"):
        (tmp_path / f"{name}.py").write_text("import nosuchdependency\n")
        with pytest.raises(ModuleNotFoundError, match="nosuchdependency'"):
            load(f"{name}:thing")
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first')\n")
    with pytest.raises(RuntimeError, match="first"):
        load(f"{path}:f")
    path.write_text("def f():\n    return 'corrected at last'\n")
    assert load(f"{path}:f")() == "corrected at last"


# Components --------------------------------------------------------------------------------------


class Made:
    def __init__(self, first: int, second: int = 2, *, third: Any = 3):
        self.all = (first, second, third)


class Open:
    def __init__(self, *args: Any, **rest: Any):
        pass


def test_call_makes_an_instance_with_the_arguments() -> None:
    assert component(Made, third=5)(1).all == (1, 2, 5)
    assert component(Made, third=5)(1, third=None).all == (1, 2, None), "arguments of the call win"
    again = component(component(Branch, kernels=(1, 3, 1), expansion=4), stride_at=1, expansion=2)
    assert parts(again) == (Branch, {"kernels": (1, 3, 1), "expansion": 2, "stride_at": 1})
    assert parts(Bottleneck) == (Branch, {"kernels": (1, 3, 1), "expansion": 4}), "the first is unchanged"
    assert parts(ZeroPad) == (ZeroPad, {})


def test_texts_and_partials_are_components() -> None:
    for same in ("ShortcutOnlyGating(bias=-3)", functools.partial(ShortcutOnlyGating, bias=-3), component("ShortcutOnlyGating", bias=-3)):
        assert resolve(same) == component(ShortcutOnlyGating, bias=-3.0)
    assert resolve("B") is Projection
    assert resolve(functools.partial(component(Scaled, branch=1), shortcut=2)) == component(Scaled, branch=1, shortcut=2)
    for wrong, message in ((functools.partial(Scaled, 1), "positional"), (functools.partial(Scaled, branch=[1]), "finite")):
        with pytest.raises(UserError, match=message):
            resolve(wrong)


def test_equality_is_by_class_and_arguments() -> None:
    ours = component(Made, second=1, third="a")
    for same in (component(Made, third="a", second=1), component(component(Made, third="a"), second=1)):
        assert (ours, hash(ours)) == (same, hash(same))
    for other in (component(Made, second=1), component(Made, second=1, third="b"), component(Made), Made):
        assert ours != other


def test_invalid_argument_is_rejected() -> None:
    """Unknown names, with the nearest one; no literals; other types than the constructor annotates."""
    cases: list[tuple[Factory, dict[str, Any], str]] = [
        (ShortcutOnlyGating, {"biass": -6}, "^ShortcutOnlyGating takes no argument 'biass'; did you mean bias"),
        (Scaled, {"resizing": "pad"}, "did you mean .*resize"),
        (Made, {"zzzzzz": 1}, "there is first, second, third$"),
        (Made, {"self": 1}, "takes no argument 'self'"),
        (Scaled, {"shortcut": "x"}, r"^Scaled\(shortcut='x'\): give float$"),
        (Scaled, {"shortcut": True}, "give float"),
        (ZeroPad, {"norm": 3}, r"ZeroPad\(norm=3\): give "),
        (Branch, {"kernels": 3}, r"give tuple\[int, ...\]"),
        (Branch, {"kernels": (3, 1.5)}, r"give tuple\[int, ...\]"),
    ]
    literals = ([1], {"a": 1}, b"x", object(), Made, 1j, (1, [2]), float("nan"), (-float("inf"),), np.float64(0.5))
    cases += [(Made, {"third": value}, "give a finite number, a string, True, False, None or a tuple") for value in literals]
    for factory, arguments, message in cases:
        with pytest.raises(UserError, match=message):
            component(factory, **arguments)


def test_value_fits_its_annotation() -> None:
    for annotation, valid, invalid in (
        (float, (1, 0.5), (True, "1", None)),
        (int, (1,), (True, 1.0)),
        (bool, (True,), (1,)),
        (float | None, (1, None), ("x",)),
        (Literal["a", 1], ("a", 1), ("b",)),
        (tuple[int, float], ((1, 2),), ((1,), (1, 2, 3), [1, 2], (1.5, 2))),
        (type[Open], (Open,), (Made, Open(), "Open")),
        (type | Component, (Made, Basic), ("Basic", 1)),
        (Any, (1, "x"), ()),
        ("Unresolved", (1, "x"), ()),
    ):
        assert all(fits(value, annotation) for value in valid), annotation
        assert not any(fits(value, annotation) for value in invalid), annotation


def test_any_value_is_read_as_written(file: Path) -> None:
    """The type is equal too, which == does not compare."""
    for value in (0, -6, 0.5, -1e-5, 1e30, True, None, "a, b=(c)", "quo\"te's", "", (), (1,), ((1, 2), ("x", (None, 0.5)))):
        for made, key in ((Made, "third"), (load(f"{file}:Anything"), "x")):
            ours = component(made, **{key: value})
            back = parse(text(ours))
            assert (back, hash(back)) == (ours, hash(ours))
            assert type(parts(back)[1][key]) is type(value)
    for factory in (ZeroPad, Basic, component(ZeroPad)):
        assert parse(text(factory)) == factory
    # That of JSON, fingerprints and messages: arguments in order of their names; an integer for a float is written as a float.
    assert text(component(Scaled, shortcut=0.5, branch=1)) == "resnet_jax.models.shortcuts:Scaled(branch=1.0, shortcut=0.5)"
    assert str(component(Basic, groups=2)) == "resnet_jax.models.blocks:Branch(groups=2, kernels=(3, 3))"


def test_users_class_is_read_by_its_file(file: Path) -> None:
    component = parse(f"{file}:Mine(scale=0.7, shape=(1, (2, 3)), power=2)")
    assert text(component) == f"{file}:Mine(power=2, scale=0.7, shape=(1, (2, 3)))"
    assert parse(f"{file}:Mine") is load(f"{file}:Mine")
    made = component(4, 8, 2, rngs=nnx.Rngs(0))
    assert (made.scale, made.name, made.shape, made.power) == (0.7, "x", (1, (2, 3)), 2)
    with pytest.raises(UserError, match=r"^Mine takes no argument 'scal'; did you mean scale"):
        parse(f"{file}:Mine(scal=0.7)")
    for name in ("function", "function()"):
        with pytest.raises(UserError, match="function is not a class"):
            parse(f"{file}:{name}")


def test_text_that_cannot_be_read_is_rejected() -> None:
    """Only literals are evaluated."""
    for arguments in ("(", "(initial=", "(1)", "(**{})", "(*x)", "(initial=f())", "(initial=1)(2)", "(initial=1) + 1",
                      "(initial=1, initial=2)", "(initial=1));import os", "(initial=1).y", "(initial=__import__('os'))",
                      "(initial={[]: 1})", "(initial=\0)", "(initial=" + "(" * 5000):  # fmt: skip
        with pytest.raises(UserError, match=r"cannot be read: write resnet_jax\.models\.shortcuts:LearnedScalar\(argument=value, \.\.\.\)"):
            parse(f"resnet_jax.models.shortcuts:LearnedScalar{arguments}")
    for written, message in (("nowhere.py:X(a=1)", "there is no file nowhere.py"), ("(a=1)", "is no known class")):
        with pytest.raises(UserError, match=message):
            parse(written)
    assert parts(parse("resnet_jax.models.shortcuts:LearnedScalar(initial=1)")) == (LearnedScalar, {"initial": 1.0})
