"""Which part of a checkpoint the weights are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.tensors.state_dicts import find_state_dict
from resnet_jax.tensors.torch_pickle import Global
from resnet_jax.tensors.torch_views import Storage, Tensor

HERE = Path("weights.pth")
A, B, ONE = (Tensor(Storage(key, np.dtype(np.float32), 6), 0, shape, (1,)) for key, shape in (("0", (6,)), ("1", (2,)), ("2", (1,))))


def test_a_dictionary_of_tensors_is_the_state_dict() -> None:
    assert find_state_dict({"a": A, "b": B, "version": 3, "nothing": None, "dtype": Global("torch.float32")}, HERE) == (
        {"a": A, "b": B},
        {},
    )


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state", "net", "module"])
def test_the_usual_names_are_known(name: str) -> None:
    saved = {
        "epoch": 90,
        "arch": "resnet",
        name: {"a": A},
        "acc": 0.9,
        "best": True,
        "none": None,
        "optimizer": {"state": {0: {"m": B}}},
        7: 8,
    }
    assert find_state_dict(saved, HERE) == ({"a": A}, {"epoch": 90, "arch": "resnet", "acc": 0.9, "best": True})


def test_state_dict_comes_first_and_averages_are_mentioned() -> None:
    weights, notes = find_state_dict(
        {"state_dict_ema": {"a": B}, "model": {"a": B}, "state_dict": {"a": A}, "best_prec1": ONE, "all": A}, HERE
    )
    assert weights == {"a": A}
    sentence = "another dictionary of tensors, not read: the weights are those of state_dict"
    assert notes == {"state_dict_ema": sentence, "model": sentence, "best_prec1": ONE}


def test_a_usual_name_without_tensors_is_passed_over() -> None:
    assert find_state_dict({"model": "resnet", "net": None, "a": A}, HERE) == ({"a": A}, {})


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"epoch": 3, "weights": {"a": A}}, "no weights are found; it holds epoch, weights"),
        ({}, "it holds nothing"),
        ([A], "weights.pth holds a list, not a dictionary of weights"),
        (A, "holds a tensor, not"),
        (None, "holds NoneType, not"),
        (Global("torch.float32"), r"holds torch\.float32, not"),
        ({"a": A, "inner": {"b": B}}, "inner among the weights is a dictionary"),
        ({"state_dict": {"a": A, "inner": [B]}}, "inner among the weights is a list"),
        ({"a": A, 3: B}, "3 among the weights is a tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(saved: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_state_dict(saved, HERE)


def test_what_contains_itself_is_refused_without_a_loop() -> None:
    saved: dict[str, Any] = {"a": A}
    saved["state_dict"] = saved
    with pytest.raises(UserError, match="state_dict among the weights is a dictionary"):
        find_state_dict(saved, HERE)
    listed: list[Any] = []
    listed.append(listed)
    assert find_state_dict({"state_dict": {"a": A}, "loop": listed}, HERE) == ({"a": A}, {})


def test_integers_that_no_one_can_print_are_no_notes() -> None:
    assert find_state_dict({"state_dict": {"a": A}, "epoch": 10**5000}, HERE) == ({"a": A}, {})
