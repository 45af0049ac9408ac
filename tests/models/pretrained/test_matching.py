"""Tensors held against places: all that is wrong in one message, shortly and quickly."""

import difflib

import ml_dtypes
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.matching import Found, Row, Unaccounted, account, fill, numbers, unfit
from resnet_jax.models.pretrained.naming import Place
from resnet_jax.tensors.files import Stored


def place(name: str, *shape: int, unit: int | None = None, leaf: str = "kernel") -> Place:
    return Place(name, shape, "params", ("stem", name, leaf), unit)


def stored(array: np.ndarray) -> Stored:
    return Stored(array.shape, array.dtype, lambda: array)


def found(*beside: str, **arrays: np.ndarray) -> Found:
    return Found({name: stored(array) for name, array in arrays.items()}, {name: f"their.{name}" for name in arrays}, frozenset(beside))


def test_what_fits_passes() -> None:
    account([place("a", 2), place("b")], found("c", a=np.ones(2), b=np.ones(()), c=np.ones(7)), told=str)


def test_all_faults_are_in_one_message() -> None:
    with pytest.raises(Unaccounted) as caught:
        account(
            [place("aaaa1", 2), place("b", 3), place("gone", 1)],
            found(aaaa2=np.ones(2), b=np.ones(4), z=np.ones(())),
            told="their.{}".format,
        )
    assert str(caught.value) == (
        "its tensors are not those of the network, and nothing was loaded."
        "\n2 missing:\n  their.aaaa1 (2,) (is it their.aaaa2?)\n  their.gone (1,)"
        "\n2 unexpected:\n  their.aaaa2 (2,)\n  their.z ()"
        "\n1 mis-shaped:\n  their.b (4,), expected (3,)"
    )


def test_what_a_scalar_is_for_one_number_is_another_shape() -> None:
    assert unfit([place("a", 1)], found(a=np.ones(()))) == [place("a", 1)]


def test_names_are_shown_without_what_a_terminal_would_obey() -> None:
    with pytest.raises(Unaccounted) as caught:
        account([], Found({"x": stored(np.ones(1))}, {"x": "\x1b[2Jevil\n" + "y" * 500}), told=str)
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 300


def test_thousands_of_faults_are_counted_and_a_dozen_compared_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are compared letter by letter: a dozen with 500 takes a second, all with all an hour."""
    compared = []
    given = difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda name, others, **how: compared.append(len(others)) or given(name, others, **how)
    )
    many = {f"layer{n}.{'abcdefghij' * 5}": stored(np.ones(1)) for n in range(20_000)}
    with pytest.raises(Unaccounted) as caught:
        account(
            [place(f"missing{n}.{'abcdefghij' * 5}", 1) for n in range(2000)], Found(many, dict(zip(many, many, strict=True))), told=str
        )
    said = str(caught.value)
    assert compared == [500] * 12
    assert "2000 missing" in said
    assert "and 1988 more" in said
    assert "20000 unexpected" in said
    assert len(said) < 5000


def test_arrays_are_written_where_they_belong() -> None:
    targets = {"params": {("stem", "a", "kernel"): np.zeros((3, 2), np.float32), ("stem", "b", "kernel"): np.zeros(2, np.float32)}}
    rows = fill([place("a", 2, unit=1), place("b", 2)], found(a=np.float16([1, 2]), b=np.float64([3, 4])), targets)
    np.testing.assert_array_equal(targets["params"]["stem", "a", "kernel"], [[0, 0], [1, 2], [0, 0]])
    np.testing.assert_array_equal(targets["params"]["stem", "b", "kernel"], [3, 4])
    assert rows == [Row("stem/a/kernel[1]", (2,), "their.a"), Row("stem/b/kernel", (2,), "their.b")]


def test_what_a_file_says_beside_a_tensor_may_change_it_and_is_checked_again() -> None:
    targets = {"params": {("stem", "a", "var"): np.zeros(2, np.float32)}}
    given = Found({"a": stored(np.float32([1, 2]))}, {"a": "A"}, change=lambda name, array: -array if name == "a" else array)
    with pytest.raises(UserError, match="A is a variance and has values down to -2"):
        fill([place("a", 2, leaf="var")], given, targets)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floating_points_of_every_width_are_read(dtype: type) -> None:
    assert numbers(stored(np.array([0.5, -2], dtype)), "x").dtype == np.float32
    np.testing.assert_array_equal(numbers(stored(np.array([0.5, -2], dtype)), "x"), [0.5, -2])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_are_no_weights(dtype: type) -> None:
    with pytest.raises(UserError, match=f"x holds {np.dtype(dtype).name}, which is no kind of weight"):
        numbers(stored(np.ones(2, dtype)), "x")
