"""The interpreter of pickles: what weights need, and by name what it refuses."""

import io
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_writer import Code, Tensor, call, instructions, name, pickled

from resnet_jax.errors import UserError
from resnet_jax.tensors import torch_pickle

HERE = Path("weights.pth")
PROTOCOL = b"\x80\x02"


def loaded(data: bytes) -> Any:
    return torch_pickle.load(io.BytesIO(data), HERE)


VALUES = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**70, 0.5, -1e300, True, False, None],
    "texts": ["", "name", "ü" * 300, "日本"],
    "nested": {"a": [1, (2, 3, 4, (5,), ())], "b": {"c": OrderedDict([("d", 1), ("e", 2)])}, 3: "four"},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_what_python_pickles_comes_back(value: Any, protocol: int) -> None:
    found = loaded(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_many_entries_and_references_come_back(protocol: int) -> None:
    shared = ["shared"]
    value = {str(i): [i, shared] for i in range(3000)}
    found = loaded(pickle.dumps(value, protocol))
    assert found == value
    assert found["7"][1] is found["2999"][1]


def test_python_2_texts_are_read() -> None:
    # pickle.dumps({"a": "b" * 300}, 2) in Python 2.7.18, by hand: SHORT_BINSTRING, BINSTRING.
    assert loaded(PROTOCOL + b"}U\x01aT" + struct.pack("<i", 300) + b"b" * 300 + b"s.") == {"a": "b" * 300}


def test_python_2_ordered_dictionaries_are_read() -> None:
    assert loaded(pickled(call("collections", "OrderedDict", [("a", 1), ["b", 2]]))) == {"a": 1, "b": 2}


def test_the_metadata_of_a_state_dict_is_passed_over() -> None:
    body = instructions(call("collections", "OrderedDict")) + b"(" + instructions("w") + instructions(1) + b"u"
    assert loaded(PROTOCOL + body + instructions({"_metadata": {"": {"version": 1}}}) + b"b.") == {"w": 1}


def test_the_stream_is_left_behind_the_pickle() -> None:
    stream = io.BytesIO(pickled(1) + pickled("two") + b"rest")
    assert [torch_pickle.load(stream, HERE) for _ in range(2)] == [1, "two"]
    assert stream.read() == b"rest"


def test_a_tensor_is_a_view_that_is_not_read() -> None:
    tensor = loaded(pickled(Tensor("7", 12, (2, 3), (1, 4), 1, "BFloat16Storage")))
    assert (tensor.storage.key, tensor.storage.dtype.name, tensor.storage.numel) == ("7", "bfloat16", 12)
    assert (tensor.offset, tensor.shape, tensor.strides) == (1, (2, 3), (1, 4))


def test_parameters_sizes_old_tensors_and_dtypes_are_known() -> None:
    storage = Code(instructions(("storage", name("torch", "LongStorage"), "0", "cuda:0", 4, None)) + b"Q")
    shape = call("torch", "Size", (2,))
    old = loaded(pickled(call("torch._utils", "_rebuild_tensor", storage, 0, shape, (2,))))
    assert (old.storage.dtype, old.shape, old.strides) == (np.int64, (2,), (2,))
    parameter = loaded(pickled(call("torch._utils", "_rebuild_parameter", Tensor(), True, call("collections", "OrderedDict"))))
    assert parameter == loaded(pickled(Tensor()))
    assert loaded(pickled({"dtype": name("torch", "float32")}))["dtype"].name == "torch.float32"


class Runs:
    """Pickled by Python itself: a call of any function."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def hostile(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file ``marker`` when Python loads them, and what their refusal names."""
    touch = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    system = os.system.__module__ + ".system"
    text = instructions
    return {
        "os.system": (pickle.dumps(Runs(os.system, shell), 2), f"asks for {system}"),
        "os.system, protocol 4": (pickle.dumps(Runs(os.system, shell), 4), f"asks for {system}"),
        "eval": (pickle.dumps(Runs(eval, touch), 2), "asks for __builtin__.eval"),
        "eval, protocol 4": (pickle.dumps(Runs(eval, touch), 4), "asks for builtins.eval"),
        "exec": (pickle.dumps(Runs(exec, touch), 4), "asks for builtins.exec"),
        "STACK_GLOBAL": (b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(shell) + b"tR.", "asks for os.system"),
        "STACK_GLOBAL, dotted": (
            b"\x80\x04" + text("torch") + text("os.system") + b"\x93(" + text(shell) + b"tR.",
            "asks for torch.os.system",
        ),
        "INST": (b"(" + text(shell) + b"ios\nsystem\n.", "asks for os.system"),
        "OBJ": (b"(cos\nsystem\n" + text(shell) + b"o.", "asks for os.system"),
        "NEWOBJ": (PROTOCOL + b"cpathlib\nPath\n(" + text(str(marker)) + b"t\x81.", "asks for pathlib.Path"),
        "nested": (pickle.dumps({"state_dict": {"a": [1, (2, {"b": Runs(os.system, shell)})]}}, 2), f"asks for {system}"),
        "as a key": (pickle.dumps([{Runs(os.system, shell): 1}], 2), f"asks for {system}"),
        "in a storage": (pickled(Tensor(key=call("os", "system", shell))), "asks for os.system"),
        "in an OrderedDict": (pickled(call("collections", "OrderedDict", call("os", "system", shell))), "asks for os.system"),
        "beside a known name": (pickled(call("torch._utils", "_rebuild_tensor_v3")), "asks for torch._utils._rebuild_tensor_v3"),
        "torch.load": (pickled(call("torch", "load", "other.pth")), "asks for torch.load"),
    }


@pytest.mark.parametrize("case", hostile(Path("marker")))
def test_nothing_is_executed_and_what_was_asked_for_is_named(case: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    data, named = hostile(marker)[case]
    with pytest.raises(UserError) as refused:
        loaded(data)
    assert f"weights.pth: the pickle {named}, which is not a tensor, dictionary, number or string: nothing was executed." in str(
        refused.value
    )
    assert "safetensors.torch.save_file(torch.load('weights.pth')[\"state_dict\"]" in str(refused.value)
    assert not marker.exists()


def test_these_pickles_do_run_where_python_loads_them(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    for case in ("os.system", "eval, protocol 4", "STACK_GLOBAL", "INST", "nested"):
        marker = tmp_path / case.replace(" ", "_").replace(",", "")
        pickle.loads(hostile(marker)[case][0])
        assert marker.exists()


@pytest.mark.parametrize(
    ("code", "instruction"),
    [
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"(o", "OBJ"),
        (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
        (b"Pkey\n", "PERSID"),
        (b"\x8f", "EMPTY_SET"),
        (b"C\x01a", "SHORT_BINBYTES"),
        (b"\x96" + b"\xff" * 8, "BYTEARRAY8"),
        (b"\x97", "NEXT_BUFFER"),
        (b"S'\\?'\n", "STRING"),
        (b"I" + b"9" * 5000 + b"\n", "INT"),
    ],
)
def test_other_instructions_are_refused_by_name(code: bytes, instruction: str) -> None:
    with pytest.raises(UserError, match=f"the pickle uses the instruction {instruction}, which is not a tensor"):
        loaded(PROTOCOL + code + b".")


def test_other_persistent_ids_keys_and_calls_are_refused() -> None:
    with pytest.raises(UserError, match="has a persistent id that is not a plain storage's"):
        loaded(pickled(Code(instructions(("module", "source", "code")) + b"Q")))
    with pytest.raises(UserError, match=r"asks for a storage of type torch\.Size"):
        loaded(pickled(Tensor(kind="Size")))
    with pytest.raises(UserError, match="has a dictionary with a key of type tuple"):
        loaded(pickled({(1, 2): 3}))
    with pytest.raises(UserError, match="has a dictionary with a key of type int"):
        loaded(pickled({2**61 - 1: 3}))
    with pytest.raises(UserError, match=r"calls torch\.float32"):
        loaded(pickled(call("torch", "float32")))


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b".",
        b"N",
        b"0.",
        b"1.",
        b"t.",
        b"\x86.",
        b"h\x00.",
        b"N(s.",
        b"}(Nu.",
        b"}NNNe.",
        b"](NNu.",
        b"}(Ne.",
        b"Nb.",
        b"NR.",
        b"N)R.",
        b"ccollections\nOrderedDict\nNR.",
        b"ctorch\nSize\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_parameter\n(NNNtR.",
        b"NN\x93.",
        b"\x80\x09.",
        b"\xff.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"X\x03\x00\x00\x00\xed\xa0\x80.",
        b"cos",
        b"cos\nsystem",
        b"T\xff\xff\xff\xff.",
        b"\x94.",
        b"q\x00.",
    ],
)
def test_malformed_streams_are_damaged_files(code: bytes) -> None:
    with pytest.raises(UserError, match=r"weights\.pth is damaged: its pickle cannot be followed"):
        loaded(PROTOCOL + code)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(shape=(-4,)),
        Tensor(strides=(-1,)),
        Tensor(offset=-1),
        Tensor(numel=-4),
        Tensor(offset=1),
        Tensor(offset=2**70),
        Tensor(strides=(2,)),
        Tensor(strides=(2**62,)),
        Tensor(shape=(5,), strides=(0,)),
        Tensor(shape=(2**20, 2**20), strides=(0, 0)),
        Tensor(shape=(2**40, 2**40), strides=(0, 0)),
        Tensor(shape=(2**40, 0, 2**40), strides=(0, 0, 0)),
        Tensor(shape=(1,) * 65, strides=(1,) * 65),
        Tensor(shape=(2, 2), strides=(1,)),
        Tensor(shape=[4]),
        Tensor(shape=(4.0,)),
        Tensor(shape=(True,)),
        Tensor(numel=2**63, shape=(2**62,)),
        Tensor(numel="4"),
        Tensor(key=0),
        Tensor(kind=("FloatStorage",)),
    ],
    ids=str,
)
def test_views_that_reach_outside_their_storage_are_damaged_files(tensor: Tensor) -> None:
    data = (
        pickled({"w": tensor})
        if isinstance(tensor.kind, str)
        else pickled(Code(instructions(("storage", "FloatStorage", "0", "cpu", 4)) + b"Q"))
    )
    with pytest.raises(UserError, match=r"weights\.pth is damaged"):
        loaded(data)


def test_a_storage_has_one_dtype_and_one_size() -> None:
    for other in (Tensor(kind="IntStorage"), Tensor(numel=5)):
        with pytest.raises(UserError, match="storage 0 is described in two ways"):
            loaded(pickled([Tensor(), other]))


@pytest.mark.parametrize(
    "code",
    [
        b"Nr\xff\xff\xff\xff",  # the memo's entry 2^32 - 1, which CPython's own unpickler makes room for
        b"Nr\x00\x00\x00\x80",
        b"X\x00\x00\x00\x80",
        b"\x8d" + struct.pack("<Q", 2**31),
        b"\x8d" + struct.pack("<Q", 2**60),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"\x95" + struct.pack("<Q", 2**60),
    ],
)
def test_claims_of_gigabytes_take_no_memory(code: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match="is damaged"):
        loaded(PROTOCOL + code + b"abc")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 10_000)
    with pytest.raises(UserError, match="takes more than 10000 steps, more than any weights need"):
        loaded(PROTOCOL + b"}" * 20_000)
    # A list that is copied again and again would be a square.
    pairs = PROTOCOL + instructions([("a", 1)] * 900) + b"q\x00"
    with pytest.raises(UserError, match="takes more than 10000 steps"):
        loaded(pairs + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 100 + b".")


def test_what_contains_itself_and_what_is_deep_comes_back() -> None:
    itself: dict[str, Any] = {}
    itself["self"] = itself
    found = loaded(pickle.dumps(itself, 2))
    assert found["self"] is found
    deep = loaded(PROTOCOL + b")" + b"\x85" * 100_000 + b".")
    assert len(deep) == 1


def test_names_in_messages_are_short_and_printable() -> None:
    with pytest.raises(UserError) as refused:
        loaded(PROTOCOL + b"cos\x1b[2J" + b"x" * 10_000 + b"\nsystem\n.")
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
