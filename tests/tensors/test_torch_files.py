"""Both formats of torch.save: files that torch wrote, files written by hand, hostile files."""

import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from torch_writer import Code, Tensor, call, instructions, pickled, write_legacy, write_zip

from resnet_jax.errors import UserError
from resnet_jax.tensors import torch_files
from resnet_jax.tensors.files import open_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"
FOUR = np.arange(4, dtype=np.float32)
Writer = Callable[..., Path]


def both(function: Any) -> Any:
    return pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])(function)


@pytest.mark.parametrize(("name", "kind"), [("tiny.pth", "torch zip"), ("tiny_legacy.pth.tar", "torch legacy")])
def test_what_torch_wrote_is_read(name: str, kind: str) -> None:
    """The numbers are drawn again as write_torch_files.py drew them."""
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
    file = open_tensors(GOLDEN / name)
    assert (file.path, file.format, file.metadata) == (GOLDEN / name, kind, {})
    assert list(file.tensors) == list(expected)
    for tensor, array in expected.items():
        stored = file.tensors[tensor]
        read = stored.read()
        assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
        assert (read.shape, read.dtype) == (array.shape, array.dtype)
        assert read.flags.c_contiguous
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)
    assert file.notes == {
        "epoch": 90,
        "arch": "resnet",
        "best_prec1": 91.5,
        "lr": 0.1,
        "distributed": False,
        "state_dict_ema": "another dictionary of tensors, not read: the weights are those of state_dict",
    }


def test_the_real_resnet20_is_read(published_resnet20: Path) -> None:
    """Yerlan Idelbayev's; 269,722 parameters are those of He et al. 2015, Table 6 (0.27M), with parameter-free shortcuts."""
    file = open_tensors(published_resnet20)
    assert file.format == "torch legacy"
    assert file.notes == {"best_prec1": pytest.approx(91.78)}
    convolutions = 16 * 3 * 9 + 6 * 16 * 16 * 9 + (32 * 16 + 5 * 32 * 32) * 9 + (64 * 32 + 5 * 64 * 64) * 9
    normalisations = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    parameters = {name: stored for name, stored in file.tensors.items() if "running" not in name}
    assert sum(stored.read().size for stored in parameters.values()) == convolutions + normalisations + 64 * 10 + 10 == 269_722
    first = file.tensors["module.conv1.weight"].read()
    assert first.shape == (16, 3, 3, 3)
    # By torch 2.14's own torch.load.
    np.testing.assert_allclose(first.ravel()[:2], [-0.13818146, -0.16241768], rtol=1e-6)


@both
def test_views_of_one_storage(write: Writer, tmp_path: Path) -> None:
    storage = np.arange(12, dtype=np.float64)
    views = {
        "whole": Tensor(numel=12, shape=(3, 4), strides=(4, 1), kind="DoubleStorage"),
        "transposed": Tensor(numel=12, shape=(4, 3), strides=(1, 4), kind="DoubleStorage"),
        "part": Tensor(numel=12, shape=(2, 2), strides=(4, 2), offset=5, kind="DoubleStorage"),
        "repeated": Tensor(numel=12, shape=(3,), strides=(0,), offset=11, kind="DoubleStorage"),
        "scalar": Tensor(numel=12, shape=(), strides=(), offset=7, kind="DoubleStorage"),
        "odd stride": Tensor(numel=12, shape=(1, 2), strides=(2**60, 1), kind="DoubleStorage"),
        "empty": Tensor(numel=12, shape=(0, 3), strides=(3, 1), offset=12, kind="DoubleStorage"),
    }
    file = open_tensors(write(tmp_path / "f", views, {"0": storage}))
    read = {name: stored.read() for name, stored in file.tensors.items()}
    matrix = storage.reshape(3, 4)
    expected = {
        "whole": matrix,
        "transposed": matrix.T,
        "part": matrix[1:, 1::2],
        "repeated": np.full(3, 11.0),
        "scalar": np.array(7.0),
        "odd stride": matrix[:1, :2],
        "empty": np.zeros((0, 3)),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


@both
def test_opening_reads_no_tensor(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path / "f", {"w": Tensor(numel=2**21, shape=(2**21,))}, {"0": np.ones(2**21, np.float32)})
    tracemalloc.start()
    file = open_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    read = file.tensors["w"].read()
    # The array, the bytes that it was copied from, and a piece of those whose checksum was taken.
    assert tracemalloc.get_traced_memory()[1] < 2.3 * read.nbytes
    tracemalloc.stop()
    assert read.sum() == 2**21


@both
def test_claims_beyond_the_file_take_no_memory(write: Writer, tmp_path: Path) -> None:
    for numel in (5, 2**29, 2**58, 2**62):
        claim = Tensor(numel=numel, shape=(numel,))
        path = write(tmp_path / "f", {"w": claim}, {"0": FOUR}, **({"numel": {"0": numel}} if write is write_legacy else {}))
        tracemalloc.start()
        with pytest.raises(UserError, match="is damaged|memory out of nothing"):
            open_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500_000


@both
def test_many_views_of_much_are_refused(write: Writer, tmp_path: Path) -> None:
    views = {f"w{i}": Tensor(numel=2**16, shape=(2**16,)) for i in range(20)}
    with pytest.raises(UserError, match="its tensors claim 5242880 bytes, the file has .*: views that make memory out of nothing"):
        open_tensors(write(tmp_path / "f", views, {"0": np.zeros(2**16, np.float32)}))
    tied = dict(list(views.items())[:3])
    assert len(open_tensors(write(tmp_path / "f", tied, {"0": np.zeros(2**16, np.float32)})).tensors) == 3


@both
def test_expanded_and_negative_views_are_refused(write: Writer, tmp_path: Path) -> None:
    for view in (Tensor(shape=(2**20, 2**20), strides=(0, 0)), Tensor(offset=-1), Tensor(strides=(2,)), Tensor(shape=(-1,))):
        with pytest.raises(UserError, match="f is damaged"):
            open_tensors(write(tmp_path / "f", {"w": view}, {"0": FOUR}))


@both
def test_nothing_is_executed(write: Writer, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    saved = {"state_dict": {"w": Tensor()}, "hook": call("os", "system", f"touch {marker}")}
    with pytest.raises(UserError, match=r"f: the pickle asks for os\.system, .* nothing was executed"):
        open_tensors(write(tmp_path / "f", saved, {"0": FOUR}))
    assert not marker.exists()


@both
def test_what_contains_itself_does_not_hang(write: Writer, tmp_path: Path) -> None:
    # {"self": itself, "state_dict": {"w": tensor}, "list": [itself]}
    inner = instructions({"w": Tensor()}, legacy=write is write_legacy)
    loop = (
        b"\x80\x02}q\x00(" + instructions("self") + b"h\x00" + instructions("state_dict") + inner + instructions("list") + b"]q\x01h\x01au."
    )
    file = open_tensors(write(tmp_path / "f", None, {"0": FOUR}, pickle=loop))
    np.testing.assert_array_equal(file.tensors["w"].read(), FOUR)
    weights = instructions("w") + instructions(Tensor(), legacy=write is write_legacy)
    path = write(tmp_path / "f", None, {"0": FOUR}, pickle=b"\x80\x02}q\x00(" + instructions("self") + b"h\x00" + weights + b"u.")
    with pytest.raises(UserError, match="self among the weights is a dictionary"):
        open_tensors(path)


@both
def test_one_element_notes_are_numbers(write: Writer, tmp_path: Path) -> None:
    ones = {"best": Tensor("1", 1, (1,), (1,), 0, "HalfStorage"), "steps": Tensor("2", 1, (), (), 0, "LongStorage")}
    large = {"view": Tensor("3", 5000, (), (), 0, "DoubleStorage")}
    storages = {"0": FOUR, "1": np.array([0.5], np.float16), "2": np.array([12]), "3": np.zeros(5000)}
    file = open_tensors(write(tmp_path / "f", {"net": {"w": Tensor()}, **ones, **large}, storages))
    assert file.notes == {"best": 0.5, "steps": 12}
    assert [type(note) for note in file.notes.values()] == [float, int]


def test_a_storage_that_is_missing_from_a_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the 16 bytes of w are not in it"):
        open_tensors(write_zip(tmp_path / "f", {"w": Tensor()}, {}))


def test_flipped_bits_in_a_zip_are_found(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "f", {"w": Tensor(), "v": Tensor("1")}, {"0": FOUR, "1": FOUR + 1})
    data = bytearray(path.read_bytes())
    data[data.index(FOUR.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    file = open_tensors(path)
    assert file.tensors["v"].read().tolist() == [1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(UserError, match="is damaged at w: its checksum is another"):
            file.tensors["w"].read()
    data[data.index(b"OrderedDict")] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged at archive/data\.pkl \(Bad CRC-32"):
        open_tensors(path)


def test_a_file_that_became_shorter_is_not_read(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "f", {"w": Tensor()}, {"0": FOUR})
    file = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="became shorter since it was opened"):
        file.tensors["w"].read()
    path.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        file.tensors["w"].read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(extra={"archive/byteorder": b"big"}), "written on a big-endian machine"),
        (dict(extra={"archive/byteorder": b"little" * 10_000}), "written on a big-endian machine"),
        (dict(extra={"archive/constants.pkl": b""}), "is a TorchScript program, not weights"),
        (dict(extra={"archive/code/net.py": b""}), "is a TorchScript program, not weights"),
        (dict(extra={"other/data.pkl": b""}), r"it has 2 data\.pkl where torch writes one"),
        (dict(extra={"../../evil": b""}), "path traversal"),
        (dict(extra={"/etc/evil": b""}), "path traversal"),
        (dict(compression=zipfile.ZIP_DEFLATED), r"archive/data\.pkl is compressed, which torch does not do"),
        (dict(extra={"archive/bomb": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    ],
)
def test_zip_files_that_torch_does_not_write(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_tensors(write_zip(tmp_path / "f", {"w": Tensor()}, {"0": FOUR}, **options))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_two_storages_of_one_name_in_a_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "f", {"w": Tensor()}, {"0": FOUR, "1": FOUR + 1})
    path.write_bytes(path.read_bytes().replace(b"archive/data/1", b"archive/data/0"))
    with pytest.raises(UserError, match="two members are called archive/data/0"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(little_endian=False), "written on a big-endian machine"),
        (dict(little_endian=None), "written on a big-endian machine"),
        (dict(keys=["0", "0"]), "its list of storages is none"),
        (dict(keys={"0": 1}), "its list of storages is none"),
        (dict(keys=[0]), "its list of storages is none"),
        (dict(keys=["1"]), "storage 1 is not what the pickle says"),
        (dict(keys=[]), "the 16 bytes of w are not in it"),
        (dict(numel={"0": 3}), "storage 0 is not what the pickle says, or cut off"),
        (dict(numel={"0": -1}), "storage 0 is not what the pickle says, or cut off"),
        (dict(numel={"0": 2**62}), "storage 0 is not what the pickle says, or cut off"),
        (dict(keys=Code(instructions(["0"]) + b"cos\nsystem\n")), r"asks for os\.system"),
    ],
)
def test_legacy_files_that_torch_does_not_write(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_tensors(write_legacy(tmp_path / "f", {"w": Tensor()}, {"0": FOUR}, **options))


def test_a_legacy_file_of_another_protocol(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "f", {"w": Tensor()}, {"0": FOUR})
    path.write_bytes(path.read_bytes().replace(pickled(1001), pickled(1002), 1))
    with pytest.raises(UserError, match="does not begin as torch's legacy files do"):
        open_tensors(path)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["tiny.pth", "tiny_legacy.pth.tar"])
def test_no_truncation_is_taken_for_the_file(name: str, tmp_path: Path) -> None:
    whole, path = (GOLDEN / name).read_bytes(), tmp_path / "cut"
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_tensors(path)


def outcome(path: Path) -> str:
    """What becomes of reading the whole file; errors other than UserError fail the test."""
    try:
        for stored in open_tensors(path).tensors.values():
            assert stored.read().shape == stored.shape
    except UserError as error:
        return str(error)
    return "read"


def flipped(data: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(drawn.choice([1, 1, 2, 8])):
        changed[drawn.randrange(len(changed))] = drawn.randrange(256)
    return bytes(changed)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["tiny.pth", "tiny_legacy.pth.tar"])
def test_flipped_bytes_raise_nothing_but_user_errors(name: str, tmp_path: Path) -> None:
    whole, path, drawn = (GOLDEN / name).read_bytes(), tmp_path / "flipped", random.Random(0)
    outcomes = []
    for _ in range(400):
        path.write_bytes(flipped(whole, drawn))
        outcomes.append(outcome(path))
    assert all(text.isprintable() for text in outcomes)
    assert 10 < outcomes.count("read") < 390


def test_flipped_bytes_of_a_pickle_raise_nothing_but_user_errors(tmp_path: Path) -> None:
    """The checksum of a zip file hides its pickle from the test above."""
    saved = {"state_dict": {"w": Tensor(), "v": Tensor("1")}, "epoch": 3, "lr": 0.1, "more": [1, (2, "three", None)]}
    whole, drawn = pickled(saved), random.Random(0)
    outcomes = []
    for _ in range(600):
        path = write_zip(tmp_path / "f", None, {"0": FOUR, "1": FOUR}, pickle=flipped(whole, drawn))
        outcomes.append(outcome(path))
    assert all(text.isprintable() for text in outcomes)
    assert 10 < outcomes.count("read") < 590


def test_the_magic_is_torchs() -> None:
    # torch/serialization.py
    assert torch_files.LEGACY_MAGIC == 0x1950A86A20F9469CFC6C
