"""Detection of corrupt files of a prepared set before training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
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


def test_check_names_truncated_files(written: DatasetInfo) -> None:
    datasets.check(written, "train")
    for number, kept in ((0, 0), (1, 0.1), (1, 0.99), (2, 0.5)):
        file = shard(written, number)
        whole = file.read_bytes()
        file.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(UserError, match=rf"{file}, of split 'train', is damaged .*resnet-jax prepare noise"):
            datasets.check(written, "train")
        file.write_bytes(whole)


def test_check_detects_flipped_bits_in_first_and_last_records(written: DatasetInfo) -> None:
    file = shard(written, 1)
    whole = file.read_bytes()
    for record in (0, 6):
        reader = array_record_module.ArrayRecordReader(str(file))
        content, wanted = bytearray(whole), reader.read([record])[0]
        reader.close()
        content[content.index(wanted[5_000:5_100])] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file}, of split 'train', is damaged"):
            datasets.check(written, "train")
        file.write_bytes(whole)


def test_check_names_missing_files_and_wrong_lengths(written: DatasetInfo) -> None:
    whole = shard(written, 1).read_bytes()
    shutil.copy(shard(written, 0), shard(written, 1))
    with pytest.raises(UserError, match=rf"{shard(written, 1)}.*it holds 11 records, not 7"):
        datasets.check(written, "train")
    shard(written, 1).write_bytes(whole)
    shard(written, 2).unlink()
    with pytest.raises(UserError, match=rf"{shard(written, 2)} is missing \(1 of the 3 files of split 'train'\)"):
        datasets.check(written, "train")


def test_check_opens_a_sample_of_many_files(tmp_path: Path) -> None:
    """Only 64 of 100 files are opened."""
    info = write(tmp_path / "noise" / "1.0.0", [1] * 100)
    datasets.check(info, "train")
    for number in (0, 50, 99):
        file = info.directory / f"noise-train.array_record-{number:05d}-of-00100"
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=f"{file} is missing"):
            datasets.check(info, "train")
        if number != 50:
            file.write_bytes(content[:100])
            with pytest.raises(UserError, match=f"{file}, of split 'train', is damaged"):
                datasets.check(info, "train")
        file.write_bytes(content)


def test_shard_of_returns_the_file_of_an_example(written: DatasetInfo) -> None:
    """11, 7 and 9 examples."""
    files = [datasets.shard_of(written, "train", index) for index in (0, 10, 11, 17, 18, 26)]
    assert files == [shard(written, number) for number in (0, 0, 1, 1, 2, 2)]


def test_check_accepts_prepared_sets_and_rejects_unknown_splits(digits_dir: str, photographs: DatasetInfo) -> None:
    digits = datasets.describe("digits", digits_dir)
    for info, split in ((digits, "train"), (photographs, "train"), (photographs, "validation")):
        datasets.check(info, split)
    assert [length for _, length in datasets.shards(digits, "test")] == [360]
    with pytest.raises(UserError, match=r"digits has no split 'validation'; it has \['test', 'train'\]"):
        datasets.check(digits, "validation")
