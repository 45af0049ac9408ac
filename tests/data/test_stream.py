"""Order and content of streamed batches: a function of seed and step."""

import hashlib
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from resnet_jax.data import datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_host import CenterCrop, RandomResizedCrop, TrivialAugment
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.stream import Rows, Stream, Streamed
from resnet_jax.errors import UserError
from resnet_jax.models.components import component

BATCH = 24


def stream(info: DatasetInfo, **changes) -> Stream:
    defaults = {
        "split": "train",
        "examples": info.examples["train"],
        "seed": 5,
        "batch_size": BATCH,
        "size": (32, 24),
        "crop": RandomResizedCrop,
    }
    return Stream(info=info, **{**defaults, **changes})


def read(images: Stream, first: int, count: int, *, process: int = 0, processes: int = 1, **loading) -> list[Streamed]:
    rows = Rows(images, first_step=first, last_step=first + count, process=process, processes=processes)
    with closing(stream_lib.batches(rows, **{"threads": 2, "memory_mb": 512, **loading})) as reading:
        return [next(reading) for _ in range(count)]


def digest(batches: list[Streamed]) -> str:
    return hashlib.sha256(b"".join(batch.images.tobytes() + batch.labels.tobytes() for batch in batches)).hexdigest()


@pytest.fixture(scope="module")
def straight(photographs: DatasetInfo) -> list[Streamed]:
    """Steps 0 to 21; the first epoch of 440 images ends in step 18."""
    return read(stream(photographs, policy=TrivialAugment), 0, 22)


def check(info: DatasetInfo, straight: list[Streamed], first: int, processes: int, **loading) -> None:
    images = stream(info, policy=TrivialAugment)
    parts = [read(images, first, 3, process=process, processes=processes, **loading) for process in range(processes)]
    whole = [Streamed(*(np.concatenate(arrays) for arrays in zip(*batch, strict=True))) for batch in zip(*parts, strict=True)]
    assert digest(whole) == digest(straight[first : first + 3])


def test_processes_and_threads_from_any_step_give_the_same_global_batches(photographs: DatasetInfo, straight: list[Streamed]) -> None:
    for first, processes, threads in ((0, 1, 1), (17, 1, 3), (17, 2, 2), (5, 4, 2)):
        check(photographs, straight, first, processes, threads=threads)


@pytest.mark.slow
def test_workers_from_any_step_give_the_same_global_batches(photographs: DatasetInfo, straight: list[Streamed]) -> None:
    for first, processes, workers in ((17, 1, 2), (0, 2, 1)):
        check(photographs, straight, first, processes, workers=workers)


@pytest.mark.slow
def test_workers_read_an_own_source(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n\n\ndef source():\n    return [(np.full((40, 50, 3), n, np.uint8), n % 2) for n in range(48)]\n"
    )
    images = stream(datasets.describe(f"{tmp_path}/own.py:source"), crop=component(CenterCrop, shorter_side=32))
    expected = read(images, 0, 3)
    assert sorted({int(image.max()) for batch in expected[:2] for image in batch.images}) == list(range(48))
    for workers in (1, 2):
        assert digest(read(images, 0, 3, workers=workers)) == digest(expected)


def test_every_epoch_holds_every_image_once_in_a_new_order(photographs: DatasetInfo) -> None:
    order = stream(photographs).order
    epochs = [[order[position] for position in range(440 * epoch, 440 * (epoch + 1))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(440)) for epoch in epochs)
    # By chance, one image in 440 is followed by its successor, and two orders agree in one place.
    assert max(np.mean(np.diff(epoch) % 440 == 1) for epoch in epochs) < 0.02
    assert max(np.sum(np.equal(epochs[0], epoch)) for epoch in epochs[1:]) < 12
    # Images held out for validation are the last ones.
    kept = stream(photographs, examples=100).order
    assert Counter(kept[position] for position in range(300)) == Counter(dict.fromkeys(range(100), 3))


def test_seeds_change_order_and_crops(photographs: DatasetInfo) -> None:
    streams = [stream(photographs, seed=seed) for seed in (0, 1, 2**31, 2**32 - 1)]
    assert len({tuple(s.order[position] for position in range(40)) for s in streams}) == 4
    index = streams[0].order[0]
    (position,) = [position for position in range(440) if streams[1].order[position] == index]
    assert streams[0].images[0].images.tobytes() != streams[1].images[position].images.tobytes()


def test_labels_are_those_of_the_images(photographs: DatasetInfo) -> None:
    images, crop = stream(photographs, crop=component(CenterCrop, shorter_side=32)), CenterCrop(32)
    (batch,) = read(images, 3, 1)
    source = datasets.encoded(photographs, "train")
    for row, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        content, expected = source[images.order[3 * BATCH + row]]
        assert label == expected
        np.testing.assert_array_equal(image, crop(datasets.decode(content), (32, 24), np.random.default_rng(0)))


def test_repeated_images_follow_each_other_with_crops_of_their_own(photographs: DatasetInfo) -> None:
    """Hoffer et al. 2019; also over the end of an epoch."""
    images = stream(photographs, repeats=3)
    epochs = [images.order[position] for position in range(3 * 2 * 440)]
    assert epochs[::3] == epochs[1::3] == epochs[2::3]
    assert sorted(epochs[: 3 * 440 : 3]) == sorted(epochs[3 * 440 :: 3]) == list(range(440))
    assert epochs[: 3 * 440] != epochs[3 * 440 :]
    (batch,) = read(images, 0, 1)
    assert len({image.tobytes() for image in batch.images}) == BATCH


def test_corrupt_images_raise_or_are_replaced_and_counted(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next good one of the set."""
    source = datasets.encoded(photographs, "train")
    items = [source[index] for index in range(440)]
    items[7:9] = [(content[:200], label) for content, label in items[7:9]]
    monkeypatch.setattr(datasets, "encoded", lambda info, split: items)
    images = stream(photographs)
    (position,) = [position for position in range(440) if images.order[position] == 7]
    step, row = divmod(position, BATCH)
    with pytest.raises(UserError, match=r"imagenet2012-train\.array_record-0000\d-of-0000\d: example 7 of split 'train' is damaged"):
        read(images, step, 1)
    replacing = stream(photographs, replaces_damaged=True)
    (batch,) = read(replacing, step, 1)
    assert batch.replaced[row] == 2, "7 and 8 are damaged"
    assert batch.labels[row] == source[9][1]
    epoch = np.concatenate([batch.replaced for batch in read(replacing, 0, 19)])[:440]
    assert epoch.sum() == 3


def test_invalid_loading_is_rejected_with_what_is_needed(photographs: DatasetInfo) -> None:
    rows = Rows(stream(photographs, batch_size=1024, size=(224, 224)), first_step=0, last_step=1)
    for loading, message in (({"workers": 2}, "2 workers"), ({"threads": 8}, "8 threads")):
        with pytest.raises(UserError, match=f"memory_mb is 300, but {message} need at least [0-9]+") as caught:
            stream_lib.batches(rows, memory_mb=300, **loading)
        least = int(str(caught.value).rpartition(" ")[2].rstrip("."))
        # 1024 images of 224x224x3 bytes are 147 MB.
        assert 3 * 147 < least < 3000
        stream_lib.reading_ahead(rows, memory_mb=least, **loading)
    for loading in ({"workers": -1}, {"threads": -2}):
        with pytest.raises(UserError, match="loading.threads and loading.workers must be at least 0, got"):
            stream_lib.reading_ahead(rows, **loading)


def test_images_are_decoded_once_within_the_memory_bound(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    example = datasets.example
    monkeypatch.setattr(datasets, "example", lambda *arguments: counted.append(arguments[3]) or example(*arguments))
    rows = Rows(stream(photographs, size=(128, 128)), first_step=0, last_step=8)
    with closing(stream_lib.batches(rows, threads=1, memory_mb=3 * 2 + 32)) as reading:
        next(reading)
        time.sleep(0.5)
        # One batch taken, one waiting, one being assembled, and at most a batch of single images.
        assert len(counted) <= 4 * BATCH
        assert len(list(reading)) == 7
    assert len(counted) == len(set(counted)) == 8 * BATCH
