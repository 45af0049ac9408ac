"""A quick look at the files of a prepared set, before anything is computed: are they all there, and whole?"""

import bisect
import itertools
import json
from pathlib import Path

import numpy as np

from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

# Opening one takes a millisecond, over a network many.
_LOOKED_AT = 64


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """The files of a split of a TFDS set, in order, with the number of examples in each, as the description has them.

    Raises:
      UserError: for an unknown split.
    """
    described = json.loads((info.directory / "dataset_info.json").read_text())
    found = [each for each in described["splits"] if each["name"] == split]
    if not found:
        raise UserError(f"{info.name} has no split {split!r}; it has {sorted(info.examples)}")
    lengths = [int(length) for length in found[0]["shardLengths"]]
    # TFDS's own way to name them; a template of the file's own could lead anywhere.
    name = f"{info.directory.parent.name}-{split}.array_record"
    return [(info.directory / f"{name}-{number:05d}-of-{len(lengths):05d}", length) for number, length in enumerate(lengths)]


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    """The file that an example lies in."""
    if sources.is_folder(info.name):
        from resnet_jax.data import folders

        return folders.opened(info, split).file(index)
    files = shards(info, split)
    return files[bisect.bisect_right(list(itertools.accumulate(length for _, length in files)), index)][0]


def check(info: DatasetInfo, split: str) -> None:
    """Opens the files of a split, counts their records and reads the first and the last of each; of more than 64, of 64 evenly spread.

    A cut or missing file is found, a missing one among any number; a bit that flipped within a record is not: at best it is when that
    record is read.

    Raises:
      UserError: naming the file, and what to do.
    """
    if sources.is_folder(info.name):
        return
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    files = shards(info, split)
    again = f"copy it anew, or delete {info.directory} and run: resnet-jax prepare {info.name}"
    present = {path.name for path in info.directory.iterdir()}
    missing = [file for file, _ in files if file.name not in present]
    if missing:
        raise UserError(f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of split {split!r} are): {again}")
    for number in np.unique(np.linspace(0, len(files) - 1, _LOOKED_AT, dtype=int)):
        file, length = files[number]
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            try:
                if reader.num_records() != length:
                    raise ValueError(f"it holds {reader.num_records()} records, not {length}")
                if length and not all(reader.read([0, length - 1])):
                    raise ValueError("a record is empty")
            finally:
                reader.close()
        except Exception as error:
            # ArrayRecord raises what its C++ side does: ValueError, RuntimeError, IndexError.
            raise UserError(f"{file}, of split {split!r}, is damaged ({str(error).splitlines()[0]:.200}): {again}") from error
