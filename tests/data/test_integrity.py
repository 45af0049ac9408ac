"""Damage to the files of a prepared set, found before anything is computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module

from resnet_jax.data import integrity, sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError


def write(folder: Path, lengths: list[int]) -> DatasetInfo:
    """A split of records of noise, as TFDS writes and describes it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        file = folder / f"{folder.parent.name}-train.array_record-{number:05d}-of-{len(lengths):05d}"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for _ in range(length):
            writer.write(rng.bytes(20_000))
        writer.close()
    split = {"name": "train", "shardLengths": [str(length) for length in lengths]}
    (folder / "dataset_info.json").write_text(json.dumps({"splits": [split]}))
    return DatasetInfo(
        name=folder.parent.name,
        version="1.0.0",
        directory=folder,
        examples={"train": sum(lengths)},
        image_shape=(None, None, 3),
        num_classes=2,
    )


@pytest.fixture
def written(tmp_path: Path) -> DatasetInfo:
    return write(tmp_path / "noise" / "1.0.0", [11, 7, 9])


def shard(info: DatasetInfo, number: int) -> Path:
    return info.directory / f"noise-train.array_record-0000{number}-of-00003"


def test_whole_files_pass(photographs: DatasetInfo) -> None:
    for split in ("train", "validation"):
        integrity.check(photographs, split)


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_was_cut_is_named(written: DatasetInfo, kept: float, number: int) -> None:
    integrity.check(written, "train")
    file = shard(written, number)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=rf"{file}, of split 'train', is damaged .*resnet-jax prepare noise"):
        integrity.check(written, "train")


@pytest.mark.parametrize("record", [0, 6])
def test_a_first_or_last_record_that_is_damaged_is_seen(written: DatasetInfo, record: int) -> None:
    """Of those between nothing is said: they are not read."""
    file = shard(written, 1)
    reader = array_record_module.ArrayRecordReader(str(file))
    wanted = reader.read([record])[0]
    reader.close()
    content = bytearray(file.read_bytes())
    content[content.index(wanted[5_000:5_100])] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}, of split 'train', is damaged"):
        integrity.check(written, "train")


def test_a_file_of_another_length_is_named(written: DatasetInfo) -> None:
    """Whole, but that of another set, or of another place."""
    shutil.copy(shard(written, 0), shard(written, 1))
    with pytest.raises(UserError, match=rf"{shard(written, 1)}.*it holds 11 records, not 7"):
        integrity.check(written, "train")


def test_a_file_that_is_missing_is_named(written: DatasetInfo) -> None:
    shard(written, 2).unlink()
    with pytest.raises(UserError, match=rf"{shard(written, 2)} is missing \(1 of the 3 files of split 'train' are\)"):
        integrity.check(written, "train")


@pytest.mark.parametrize("number", [0, 50, 99])
def test_of_many_files_any_that_is_missing_is_named(tmp_path: Path, number: int) -> None:
    """Though only 64 of them are opened."""
    info = write(tmp_path / "noise" / "1.0.0", [1] * 100)
    integrity.check(info, "train")
    file = info.directory / f"noise-train.array_record-{number:05d}-of-00100"
    file.unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        integrity.check(info, "train")


def test_the_first_and_the_last_file_are_always_opened(tmp_path: Path) -> None:
    info = write(tmp_path / "noise" / "1.0.0", [1] * 100)
    for number in (0, 99):
        file = info.directory / f"noise-train.array_record-{number:05d}-of-00100"
        content = file.read_bytes()
        file.write_bytes(content[:100])
        with pytest.raises(UserError, match=f"{file}, of split 'train', is damaged"):
            integrity.check(info, "train")
        file.write_bytes(content)


def test_an_example_lies_in_the_file_that_its_number_says(written: DatasetInfo) -> None:
    """11, 7 and 9 examples."""
    found = [integrity.shard_of(written, "train", index) for index in (0, 10, 11, 17, 18, 26)]
    assert found == [shard(written, number) for number in (0, 0, 1, 1, 2, 2)]


def test_an_unknown_split_is_an_error_with_the_known_ones(written: DatasetInfo) -> None:
    with pytest.raises(UserError, match=r"noise has no split 'test'; it has \['train'\]"):
        integrity.check(written, "test")


def test_sets_without_photographs_are_looked_at_too(digits_dir: str) -> None:
    info = sources.describe("digits", digits_dir)
    integrity.check(info, "train")
    assert [length for _, length in integrity.shards(info, "test")] == [360]
