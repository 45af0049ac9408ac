"""The order and the content of streamed batches: a function of seed and step alone."""

import hashlib
import pickle
from collections import Counter
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest

from resnet_jax.configured import configured
from resnet_jax.data import sources, streaming
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.data.policies import TrivialAugment
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.data.streaming import Rows, Stream, Streamed
from resnet_jax.errors import UserError

BATCH = 24


def stream(info: DatasetInfo, **changes) -> Stream:
    given = {
        "split": "train",
        "examples": info.examples["train"],
        "seed": 5,
        "batch_size": BATCH,
        "size": (32, 24),
        "crop": RandomResizedCrop,
    }
    return Stream(info=info, **{**given, **changes})


def read(of: Stream, first: int, count: int, *, process: int = 0, processes: int = 1, **loading) -> list[Streamed]:
    rows = Rows(of, first_step=first, last_step=first + count, process=process, processes=processes)
    with closing(streaming.batches(rows, **{"threads": 2, "memory_mb": 512, **loading})) as reading:
        return [next(reading) for _ in range(count)]


def digest(batches: list[Streamed]) -> str:
    return hashlib.sha256(b"".join(batch.images.tobytes() + batch.labels.tobytes() for batch in batches)).hexdigest()


def joined(parts: list[list[Streamed]]) -> list[Streamed]:
    """The global batches from those of each process."""
    return [Streamed(*(np.concatenate(arrays) for arrays in zip(*batch, strict=True))) for batch in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def straight(photographs: DatasetInfo) -> list[Streamed]:
    """Steps 0 to 21, over the end of the first epoch of 440 images (step 18)."""
    return read(stream(photographs, policy=TrivialAugment), 0, 22)


# Each worker is a process that takes seconds to start: from another step, and for four processes, they are begun in the slow tests.
LAYOUTS = [
    pytest.param(processes, workers, first, marks=[pytest.mark.slow] * (workers > 0 and (first == 0 or processes == 4)))
    for processes in (1, 2, 4)
    for workers in (0, 1, 2)
    for first in (0, 17)
]


@pytest.mark.quick(3)
@pytest.mark.parametrize(("processes", "workers", "first"), LAYOUTS)
def test_any_number_of_processes_and_workers_from_any_step_gives_the_same_global_batches(
    photographs: DatasetInfo, straight: list[Streamed], processes: int, workers: int, first: int
) -> None:
    of = stream(photographs, policy=TrivialAugment)
    parts = [read(of, first, 3, process=process, processes=processes, workers=workers) for process in range(processes)]
    assert digest(joined(parts)) == digest(straight[first : first + 3])
    assert all(len(batch.labels) == BATCH // processes for part in parts for batch in part)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(photographs: DatasetInfo, straight: list[Streamed], threads: int) -> None:
    assert digest(read(stream(photographs, policy=TrivialAugment), 5, 3, threads=threads)) == digest(straight[5:8])


def test_every_epoch_holds_every_image_once_in_another_order(photographs: DatasetInfo) -> None:
    of = stream(photographs)
    epochs = [[of.index(position) for position in range(440 * epoch, 440 * (epoch + 1))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(440)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # Not the order of storage, nor a rotation of it: of neighbours in a random order one in 440 is followed by its successor.
    follows = [np.mean(np.diff(epoch) % 440 == 1) for epoch in epochs]
    assert max(follows) < 0.02
    # Two orders agree in one place on average.
    assert sum(a == b for a, b in zip(*epochs[:2], strict=True)) < 12


def test_seeds_have_orders_and_crops_of_their_own(photographs: DatasetInfo) -> None:
    orders = [tuple(stream(photographs, seed=seed).index(position) for position in range(40)) for seed in (0, 1, 2**40)]
    assert len(set(orders)) == 3
    same = [stream(photographs, seed=seed).generator(3).random() for seed in (0, 1)]
    assert same[0] != same[1]
    assert stream(photographs, seed=-3).index(0) in range(440)


def test_images_kept_for_validation_never_come(photographs: DatasetInfo) -> None:
    of = stream(photographs, examples=100)
    assert Counter(of.index(position) for position in range(300)) == Counter(dict.fromkeys(range(100), 3))


def test_labels_are_those_of_the_images(photographs: DatasetInfo) -> None:
    """Each image shrunk whole, against the file's own."""
    of = stream(photographs, crop=configured(RandomResizedCrop, area=(1.0, 1.0), ratio=(0.2, 5.0)), size=(8, 8))
    (batch,) = read(of, 3, 1)
    source = sources.encoded(photographs, "train")
    assert batch.labels.tolist() == [source[of.index(3 * BATCH + row)][1] for row in range(BATCH)]
    assert len(set(batch.labels.tolist())) > 10


def test_repeated_augmentation_crops_the_same_image_several_times_in_different_ways(photographs: DatasetInfo) -> None:
    """Hoffer et al. 2019: an image stands in a batch several times; here each in three neighbouring places."""
    of = stream(photographs, repeats=3)
    (batch,) = read(of, 0, 1)
    assert [of.index(position) for position in range(BATCH)] == [of.index(3 * (position // 3)) for position in range(BATCH)]
    assert len({of.index(position) for position in range(BATCH)}) == BATCH // 3
    assert len({image.tobytes() for image in batch.images}) == BATCH


class Damaged(Sequence):
    """A source with two examples that cannot be decoded."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        found, label = self._source[index]
        return (found[:200] if index in (7, 8) else found), label


@pytest.fixture
def damaged(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> DatasetInfo:
    whole = sources.encoded
    monkeypatch.setattr(sources, "encoded", lambda info, split: Damaged(whole(info, split)))
    return photographs


def steps_of(of: Stream, index: int) -> int:
    return next(position for position in range(440) if of.index(position) == index) // BATCH


def test_a_damaged_image_stops_with_its_file_and_index(damaged: DatasetInfo) -> None:
    of = stream(damaged)
    with pytest.raises(UserError, match=r"imagenet2012-train\.array_record-0000\d-of-00002.*example 7 of split 'train' is damaged"):
        read(of, steps_of(of, 7), 1)


def test_a_damaged_image_can_be_replaced_by_the_next_good_one_and_is_counted(damaged: DatasetInfo) -> None:
    of = stream(damaged, replaces_damaged=True)
    step = steps_of(of, 7)
    (batch,) = read(of, step, 1)
    (row,) = [row for row in range(BATCH) if of.index(step * BATCH + row) == 7]
    assert batch.replaced[row] == 2, "7 and 8 are damaged"
    assert batch.labels[row] == sources.encoded(damaged, "train")[9][1]
    assert sum(int(each.replaced.sum()) for each in read(of, 0, 18)) == 3


def test_an_unfit_number_of_processes_is_refused(photographs: DatasetInfo) -> None:
    with pytest.raises(UserError, match="batch_size is 24, which 5 processes cannot share equally"):
        Rows(stream(photographs), first_step=0, last_step=1, process=0, processes=5)


@pytest.mark.parametrize(("loading", "message"), [({"workers": 2}, "2 workers"), ({"threads": 8}, "8 threads")])
def test_a_bound_on_memory_that_does_not_hold_what_waits_is_refused_with_what_does(
    photographs: DatasetInfo, loading: dict, message: str
) -> None:
    rows = Rows(stream(photographs, batch_size=1024, size=(224, 224)), first_step=0, last_step=1)
    with pytest.raises(UserError, match=f"memory_mb is 300; .*{message}.* need ([0-9]+) at least") as caught:
        streaming.batches(rows, memory_mb=300, **loading)
    least = int(str(caught.value).partition(" need ")[2].split()[0])
    # 1024 images of 224x224x3 bytes are 147 MB.
    assert 3 * 147 < least < 3000
    streaming.batches(rows, memory_mb=least, **loading).close()


def test_no_more_images_are_read_ahead_than_the_bound_allows(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read while nobody takes them: two batches' worth is put together or waits, and what the rest of the memory holds."""
    import time

    counted = []
    given = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda self, number: counted.append(number) or given(self, number))
    rows = Rows(stream(photographs, size=(128, 128)), first_step=0, last_step=18)
    with closing(streaming.batches(rows, threads=1, memory_mb=3 * 2 + 32)) as reading:
        next(reading)
        end = time.monotonic() + 60
        while len(counted) <= BATCH and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(1)
        # One batch taken, one waiting, one being put together, and at most a batch of single images.
        assert BATCH < len(counted) <= 4 * BATCH


def test_rows_can_be_sent_to_workers(photographs: DatasetInfo) -> None:
    rows = Rows(stream(photographs), first_step=2, last_step=4)
    rows[0]
    again = pickle.loads(pickle.dumps(rows))
    assert again[5].images.tobytes() == rows[5].images.tobytes()
    assert len(again) == 2 * BATCH
