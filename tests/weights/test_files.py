"""Reading safetensors, npz and torch files: valid ones, and hostile ones, of which nothing is executed."""

import io
import itertools
import json
import os
import pickle
import random
import re
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from others import GOLDEN
from resnet_jax.errors import UserError
from resnet_jax.weights import files
from torch_writer import Code, Tensor, call, instructions, name, pickled, write_legacy, write_zip

FOUR = np.arange(4, dtype=np.float32)
PROTOCOL = b"\x80\x02"
DEEP = b"\x85" * 200_000  # a tuple in a tuple in ...: its hash overflows the C stack
WRITERS = (write_zip, write_legacy)
KEY = "a key that is not a name"


def read(path: Path) -> tuple[files.Arrays, dict[str, str]]:
    """Returns the tensors of a file's largest dictionary, and its metadata."""
    groups, metadata = files.read(path)
    return max(groups.values(), key=len), metadata


def rejection(path: Path) -> str:
    """Returns the one sentence with which a file is rejected."""
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert text.isprintable()
    assert len(text) < len(str(path)) + 300
    return text


def rejects(cases: dict[str, tuple[Any, str]], write: Callable[[Any], Path]) -> None:
    """Every file is rejected for its reason; faults are listed together."""
    wrong = []
    for case, (value, reason) in cases.items():
        text = rejection(write(value))
        if reason not in text:
            wrong.append(f"{case}: {text}")
    assert not wrong, "\n".join(wrong)


def test_read_torch_files_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are drawn again as ``write_torch_golden.py`` drew them."""
    monkeypatch.setitem(sys.modules, "torch", None)  # an import raises
    drawn = np.random.default_rng(2016)
    full = drawn.standard_normal((4, 6)).astype(np.float32)
    half = drawn.standard_normal(5).astype(np.float32).astype(np.float16)
    expected = {
        "full": full,
        "transposed": full.T,
        "sliced": full[1:, ::2],
        "half": half,
        "bfloat": half.astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "mask": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": drawn.standard_normal((2, 3)).astype(np.float32),
    }
    for file in ("tiny.pth", "tiny_legacy.pth.tar"):
        arrays, metadata = read(GOLDEN / file)
        assert (list(arrays), metadata) == (list(expected), {})
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array, strict=True)


def test_read_safetensors_and_npz_by_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"  # a misleading name
    dtypes = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]
    arrays = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes} | {"scalar": np.array(2.0), "empty": np.ones((0, 2))}
    bfloat = {"bfloat16": np.arange(4).astype(ml_dtypes.bfloat16)}
    for content, expected, metadata in (
        (safetensors.numpy.save(arrays | bfloat, {"key": "värde"}), arrays | bfloat, {"key": "värde"}),
        (npz(np.savez, **arrays), arrays, {}),
        (npz(np.savez_compressed, **arrays), arrays, {}),
    ):
        path.write_bytes(content)
        actual, actual_metadata = read(path)
        assert (actual.keys(), actual_metadata) == (expected.keys(), metadata)
        for key, array in expected.items():
            np.testing.assert_array_equal(actual[key], array, strict=True)


def npz(function: Callable[..., None], **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    function(file, **arrays)
    return file.getvalue()


def by_hand(path: Path, header: Any, length: int | None = None) -> Path:
    """A safetensors file: 8 bytes of length, JSON, four bytes of numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"1234")
    return path


def test_torch_views_are_read_iff_every_element_is_in_the_storage(tmp_path: Path) -> None:
    drawn, counts = random.Random(0), [0, 0]
    for _ in range(300):
        axes, numel, offset = drawn.randrange(4), drawn.randrange(20), drawn.randrange(6)
        shape = tuple(drawn.randrange(4) for _ in range(axes))
        strides = tuple(drawn.randrange(7) for _ in range(axes))
        indices = itertools.product(*map(range, shape))
        reached = [offset + sum(i * s for i, s in zip(index, strides, strict=True)) for index in indices]
        holds = len(reached) <= numel and all(i < numel for i in reached)
        path = write_zip(tmp_path / "f", {"w": Tensor("0", numel, shape, strides, offset)}, {"0": np.arange(numel, dtype=np.float32)})
        counts[holds] += 1
        if holds:
            assert read(path)[0]["w"].ravel().tolist() == reached
        else:
            assert "is corrupt: a tensor reaches beyond its storage" in rejection(path)
    assert min(counts) > 50


def test_every_dictionary_of_tensors_is_read(tmp_path: Path) -> None:
    weights = {"w": Tensor(), "version": 3, "nothing": None, 4: Tensor()}
    inner = {"a": Tensor(), "b": Tensor(shape=(2, 2), strides=(2, 1)), "list": [Tensor()]}
    file = write_zip(tmp_path / "f", {"epoch": 9, "top": Tensor(), "net": weights, "ema": {"module": inner}}, {"0": FOUR})
    shapes = {key: {name: array.shape for name, array in group.items()} for key, group in files.read(file)[0].items()}
    assert shapes == {"": {"top": (4,)}, "net": {"w": (4,)}, "ema.module": {"a": (4,), "b": (2, 2)}}
    for value in ([Tensor()], {3: Tensor()}):
        assert "has no named tensors" in rejection(write_zip(tmp_path / "f", value, {"0": FOUR}))


def test_python_pickles_of_plain_values_are_accepted(tmp_path: Path) -> None:
    """Values that training scripts save beside the weights, by CPython's own pickler."""
    shared = ["shared"]
    extra = {"numbers": [0, -1, 255, 65536, 2**31, 2**70, 0.5, True, None], "texts": ["", "ü" * 300], "tuple": (1, (2,), ())}
    extra |= {"ordered": OrderedDict(a=1), "many": {str(i): [i, shared] for i in range(300)}, "ids": {140_000_000_000_000: 1, 3: 2}}
    body = pickle.dumps(extra, 2)[2:-1]
    code = PROTOCOL + b"}(" + instructions("extra") + body + instructions("model") + instructions({"w": Tensor()}) + b"u."
    assert read(write_zip(tmp_path / "f", None, {"0": FOUR}, code=code))[0]["w"].tolist() == [0, 1, 2, 3]
    ordered = Code(instructions(call("collections", "OrderedDict")) + b"(" + instructions("w") + instructions(Tensor()) + b"u")
    metadata = Code(ordered.code + instructions({"_metadata": {"": {"version": 1}}}) + b"b")
    assert list(read(write_zip(tmp_path / "f", metadata, {"0": FOUR}))[0]) == ["w"]
    built = Code(instructions(Tensor()) + instructions({"offset": 3}) + b"b")
    saved = {"model": {"w": Tensor()}, "more": [built, Code(b"ctorch\nSize\n}(" + instructions("x") + b"Nub")]}  # attributes are ignored
    assert read(write_zip(tmp_path / "f", saved, {"0": FOUR}))[0]["w"].tolist() == [0, 1, 2, 3]


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def payloads(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that create the file ``marker`` if Python loads them."""
    shell = f"touch {marker}"
    nested = {"state_dict": {"a": [1, (2, {"b": Runs(os.system, shell)})]}}
    return {
        "eval": (pickle.dumps(Runs(eval, f"open({str(marker)!r}, 'w').close()"), 2), "imports __builtin__.eval"),
        **{f"protocol {n}": (pickle.dumps(nested, n), f"imports {os.system.__module__}.system") for n in (1, 2, 3)},
        **{f"protocol {n}": (pickle.dumps(nested, n), BEYOND) for n in (0, 4, 5)},
        "INST": (PROTOCOL + b"(" + instructions(shell) + b"ios\nsystem\n.", BEYOND),
        "OBJ": (PROTOCOL + b"(cos\nsystem\n" + instructions(shell) + b"o.", BEYOND),
    }


ANY, BEYOND, KIND = "", "has the instruction ", "has a storage of another kind"
SHAPE, OUTSIDE = "invalid storage, shape or stride", "reaches beyond its storage"
HOSTILE = {
    "NEWOBJ": (b")\x81.", BEYOND),
    "extension": (b"\x82\x01.", BEYOND),
    "dotted name": (b"ctorch\nos.system\n.", "imports torch.os.system"),
    "name with control characters": (b"cos\x1b[2J" + b"x" * 10_000 + b"\nsystem\n.", "imports 'os\\x1b[2Jxxx"),
    "storage of text size": (instructions(Tensor(numel="4")) + b".", KIND),
    "storage view": (instructions(("storage", name("torch", "FloatStorage"), "0", "cpu", 4, ("1", 0, 4))) + b"Q.", KIND),
    "negative storage": (instructions(Tensor(numel=-4)) + b".", OUTSIDE),
    "huge storage": (instructions({"w": Tensor(numel=2**58, shape=(2**58,))}) + b".", ANY),
    "storage of two dtypes": (instructions({"w": Tensor(), "v": Tensor(kind="DoubleStorage")}) + b".", "is corrupt"),
    "negative shape": (instructions(Tensor(shape=(-4,))) + b".", SHAPE),
    "negative stride": (instructions(Tensor(strides=(-1,))) + b".", SHAPE),
    "boolean shape": (instructions(Tensor(shape=(True,))) + b".", SHAPE),
    "65 axes": (instructions(Tensor(shape=(1,) * 65, strides=(1,) * 65)) + b".", SHAPE),
    "missing stride": (instructions(Tensor(shape=(2, 2))) + b".", SHAPE),
    "storage of a tensor": (instructions(call("torch._utils", "_rebuild_tensor", Tensor(), 0, (4,), (1,))) + b".", SHAPE),
    "expanded": (instructions(Tensor(shape=(2**20, 2**20), strides=(0, 0))) + b".", OUTSIDE),
    "far beyond the storage": (instructions(Tensor(strides=(2**62,))) + b".", OUTSIDE),
    "dictionary of a list": (instructions(call("collections", "OrderedDict", [("a", 1)])) + b".", "is corrupt: TypeError"),
    "tuple as a key": (b"})Ns.", KEY),
    "tuple as a key, through the memo": (b"))\x86q\x00}(h\x00Nu.", KEY),
    "number with a chosen hash as a key": (instructions({2**61 - 1: None}) + b".", KEY),
    "tensor as a key": (b"}" + instructions(Tensor()) + b"Ns.", KEY),
    "text of gigabytes": (b"X\x00\x00\x00\x80abc", ANY),
    "empty": (b"", ANY),
    "unknown instruction": (b"\xff.", "is corrupt: ValueError"),
    "no mark": (b"t.", "is corrupt: UnpicklingError"),
}


def test_hostile_pickles_are_rejected_and_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    cases = {case: (PROTOCOL + code, reason) for case, (code, reason) in HOSTILE.items()} | payloads(marker)
    for write in WRITERS:
        rejects(cases, lambda code, write=write: write(tmp_path / "f", None, {"0": FOUR}, code=code))
    assert not marker.exists()
    # Python does execute them.
    for case, (code, _) in payloads(marker).items():
        pickle.loads(code)
        assert marker.exists(), case
        marker.unlink()


def test_cyclic_and_deep_values_beside_the_weights_are_harmless(tmp_path: Path) -> None:
    weights = instructions("model") + instructions({"w": Tensor()})
    assert KEY in rejection(write_zip(tmp_path / "f", None, code=PROTOCOL + b"})" + DEEP + b"Ns."))
    cases = {
        "dictionary in itself": b"}q\x00(" + instructions("self") + b"h\x00" + weights + b"u.",
        "list in itself": b"}(" + instructions("list") + b"]q\x00h\x00a" + weights + b"u.",
        "deep tuple": b"}(" + instructions("deep") + b")" + DEEP + weights + b"u.",
    }
    for case, code in cases.items():
        assert list(read(write_zip(tmp_path / "f", None, {"0": FOUR}, code=PROTOCOL + code))[0]) == ["w"], case
    itself = PROTOCOL + b"}q\x00(" + instructions("state_dict") + b"h\x00" + instructions("w") + instructions(Tensor()) + b"u."
    assert list(read(write_zip(tmp_path / "f", None, {"0": FOUR}, code=itself))[0]) == ["w"]


def test_claims_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    many = {f"w{i}": Tensor(numel=2**16, shape=(2**16,)) for i in range(20)}
    zeros = {"0": np.zeros(2**16, np.float32)}
    writes: list[Callable[[Path], Any]] = [
        lambda path: write_zip(path, {"w": Tensor(numel=2**29, shape=(2**29,))}, {"0": FOUR}),
        lambda path: write_legacy(path, {"w": Tensor(numel=2**29, shape=(2**29,))}, {"0": FOUR}, numel={"0": 2**29}),
        lambda path: write_zip(path, None, {"0": FOUR}, code=PROTOCOL + b"Nr\xff\xff\xff\xff."),
        lambda path: by_hand(path, b"{}", length=2**31),
        lambda path: path.write_bytes(npz(np.savez_compressed, a=np.zeros(2_000_000))),
    ]
    for index, write in enumerate(writes):
        write(path := tmp_path / "f")
        tracemalloc.start()
        rejection(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000, index
    one = write_zip(tmp_path / "f", {f"w{i}": Tensor(numel=i, shape=(1,)) for i in range(1, 100)}, zeros)
    tracemalloc.start()
    assert len(read(one)[0]) == 99
    assert tracemalloc.get_traced_memory()[1] < 2_000_000, "a storage is read once, however it is described"
    tracemalloc.stop()
    for write in WRITERS:
        assert "has tensors of 5242880 bytes in a file of" in rejection(write(tmp_path / "f", many, zeros))
        assert len(read(write(tmp_path / "f", dict(list(many.items())[:3]), zeros))[0]) == 3, "tied weights"


def test_hostile_zip_files_are_rejected(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "big-endian": (dict(extra={"archive/byteorder": b"big"}), "written on a big-endian machine"),
        "huge pickle": (dict(code=b"N" * 2**23), "has a pickle of over 4194304 bytes"),
        "two pickles": (dict(extra={"other/data.pkl": b""}), "neither of npz arrays nor of torch.save"),
        "bomb": (dict(extra={"archive/bomb": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED), "a zip bomb"),
        "bomb of another compression": (dict(compression=zipfile.ZIP_BZIP2), "is neither stored nor deflated"),
    }
    rejects(cases, lambda options: write_zip(tmp_path / "f", {"w": Tensor()}, {"0": FOUR}, **options))
    members = dict.fromkeys(("../../evil", "/etc/evil", "a\\..\\evil", "C:/evil"), b"")
    assert "w" in read(write_zip(tmp_path / "f", {"w": Tensor()}, {"0": FOUR}, extra=members))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["f"], "nothing is extracted"
    honest = write_zip(tmp_path / "f", {"w": Tensor()}, {"0": FOUR, "1": FOUR + 1}).read_bytes()

    def changed(at: int, data: bytes) -> bytes:
        return honest[:at] + data + honest[at + len(data) :]

    contents = {
        "two members of one name": (honest.replace(b"archive/data/1", b"archive/data/0"), "two members of the same name"),
        "encrypted": (changed(honest.index(b"PK\x01\x02") + 8, b"\x01"), "is corrupt: RuntimeError"),
        "flipped bit of a storage": (changed(honest.index(FOUR.tobytes()) + 5, b"\x01"), "Bad CRC-32"),
        "no directory": (b"PK\x03\x04" + bytes(100), "is corrupt: BadZipFile"),
    }
    rejects(contents, lambda content: (tmp_path / "f").write_bytes(content) and tmp_path / "f")
    assert "is corrupt: KeyError" in rejection(write_zip(tmp_path / "f", {"w": Tensor()}, {}))


def test_hostile_legacy_files_are_rejected(tmp_path: Path) -> None:
    deep = Code(b"])" + DEEP + b"a")
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "big-endian": (dict(little_endian=False), "is of another version"),
        "version": (dict(version=1002), "is of another version"),
        "key without a tensor": (dict(keys=["1"]), "no tensor uses a storage"),
        "deep tuple as a key": (dict(keys=deep), "no tensor uses a storage"),
        "key twice": (dict(keys=["0", "0"]), "another size than its pickle claims"),
        "no keys": (dict(keys=[]), "is corrupt: KeyError"),
        "small storage": (dict(numel={"0": 3}), "another size than its pickle claims"),
        "code in the keys": (dict(keys=Code(b"cos\nsystem\n")), "imports os.system"),
    }
    rejects(cases, lambda options: write_legacy(tmp_path / "f", {"w": Tensor()}, {"0": FOUR}, **options))


def test_hostile_safetensors_and_npz_files_are_rejected(tmp_path: Path) -> None:
    sizes = (([2**58], [0, 2**60]), ([2**62, 2**62], [0, 4]), ([2], [0, 4]), ([1], [4, 0]), ([-1], [0, 4]))
    headers = [{"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}} for shape, offsets in sizes]
    headers += [{"__metadata__": {"a": 3}}, b"{" + b"[" * 100_000, b'{"\xff": 1}']
    rejects({str(h)[:60]: (h, "is corrupt: SafetensorError") for h in headers}, lambda value: by_hand(tmp_path / "f", value))

    def member_of_npz(member: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / "f", "w") as archive:
            archive.writestr("a.npy", member)
        return tmp_path / "f"

    marker, honest, objects = tmp_path / "executed", io.BytesIO(), io.BytesIO()
    np.save(honest, FOUR)
    np.save(objects, np.array([Runs(Path.touch, marker)], dtype=object))
    changes = ((b"(4,), }    ", b"(9**99,), }"), (b"(4,)", b"(8,)"), (b"(4,)", b"(-4)"), (b"'<f4'", b"'|O8'"), (b"'<f4'", b"exit("))
    members = [honest.getvalue().replace(old, new) for old, new in changes]
    members += [b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(100_000), objects.getvalue()]
    rejects({str(m)[:120]: (m, "is corrupt: ") for m in members}, member_of_npz)
    assert not marker.exists()


CONVERTED = {
    **dict.fromkeys(("weights", "a.h5", "b.weights.h5", "c.keras"), "a Keras file"),
    **dict.fromkeys(("checkpoint", "model.ckpt.index", "model.ckpt.data-00000-of-00001"), "a TensorFlow checkpoint"),
    "saved_model.pb": "a TensorFlow model",
    "net.onnx": "an ONNX file",
    "x.msgpack": "a Flax file",
}


def test_other_files_are_rejected_with_their_first_bytes(tmp_path: Path) -> None:
    contents = {
        "nothing": (b"", "npz or torch file: ''"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "npz or torch file: 'version https://git-lfs"),
        "page": (b"<!DOCTYPE html>\n<html>", "npz or torch file: '<!DOCTYPE html>"),
        "plain pickle": (pickle.dumps({"a": np.ones(3)}, 2), "is no safetensors, npz or torch file"),
        "zeros": (bytes(100), "npz or torch file: '\\x00"),
    }
    rejects(contents, lambda content: [(tmp_path / "f").write_bytes(content), tmp_path / "f"][1])
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("config.json", "{}")
    assert "is a zip file, but neither of npz arrays nor of torch.save" in rejection(tmp_path / "f")
    os.mkfifo(tmp_path / "pipe")
    for converted, kind in CONVERTED.items():
        (tmp_path / converted).write_bytes({"weights": b"\x89HDF\r\n", "checkpoint": b"model_checkpoint_path: 'a'"}.get(converted, b"x"))
        assert re.search(f"is {kind}: write .* with numpy.savez", rejection(tmp_path / converted)), converted
    assert "is a TensorFlow checkpoint" in rejection(tmp_path / "model.ckpt")
    for path, reason in ((tmp_path / "missing", "does not exist"), (tmp_path, "is not a file"), (tmp_path / "pipe", "is not a file")):
        assert reason in rejection(path)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read(tmp_path / ("x" * 5000))


def test_truncated_and_flipped_files_raise_only_user_errors(tmp_path: Path) -> None:
    """One file of each format, and a pickle without the checksums of a zip file."""
    path, drawn, outcomes = tmp_path / "f", random.Random(0), []
    arrays = {"a": FOUR, "b": np.ones((2, 2), np.float16)}
    samples = [(GOLDEN / file).read_bytes() for file in ("tiny.pth", "tiny_legacy.pth.tar")]
    samples += [npz(np.savez, **arrays), safetensors.numpy.save(arrays, {"k": "v"})]
    for whole in samples:
        for size in [*range(0, len(whole), 1 + len(whole) // 60), len(whole) - 1]:
            path.write_bytes(whole[:size])
            rejection(path)
    saved = pickled({"state_dict": {"w": Tensor(), "v": Tensor("1")}, "epoch": 3, "lr": 0.1, "more": [1, (2, "three", None)]})
    for whole in (*samples, saved):
        for _ in range(120):
            changed = bytearray(whole)
            for _ in range(drawn.choice([1, 1, 2, 8])):
                changed[drawn.randrange(len(changed))] = drawn.randrange(256)
            path.write_bytes(changed)
            if whole is saved:
                write_zip(path, None, {"0": FOUR, "1": FOUR}, code=bytes(changed))
            try:
                outcomes.append(str(sum(array.astype(np.float64).size for array in read(path)[0].values())))
            except UserError as error:
                outcomes.append(str(error))
    assert all(text.isprintable() and len(text) < 1000 for text in outcomes)
    assert 60 < sum(text.isdigit() for text in outcomes) < 540
