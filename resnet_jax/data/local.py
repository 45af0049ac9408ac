"""Descriptions of data sets, and sets that are read in place: folders, and sources in Python."""

import functools
import hashlib
import inspect
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from resnet_jax.data import images
from resnet_jax.errors import UserError, require
from resnet_jax.models import components

Items = Sequence[Any]  # pairs of images as in ``images.decode``, and labels
_SPLIT = re.compile(r"(train|test|val)(ing|id|idation)?([ _-]?(set|data|images))?", re.IGNORECASE)
_SOURCE = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")  # FILE.py:NAME, module:NAME
# Images that Pillow does not read.
_UNREAD = {".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".nef", ".arw"}
# Larger folders are not decoded before a run.
_DECODED = 5000
_CONTRACT = "must have __len__ and a __getitem__ that returns (image, label)"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Metadata of a set."""

    name: str
    version: str
    """Of TFDS, or a hash of names and sizes."""
    directory: Path
    """``DATA_DIR/NAME/VERSION``, or the place of a set that is read in place."""
    examples: dict[str, int] = field(hash=False)
    """Number of examples per split."""
    image_shape: tuple[int | None, ...]
    """Height, width, channels; None if images differ."""
    num_classes: int
    classes: tuple[str, ...] = ()
    """Names by label; numbers if there are no names."""
    is_prepared: bool = True
    """Whether the set is one of TFDS rather than read in place."""
    is_shuffled: bool = True
    """Whether classes are mixed in the order of a split."""
    held_out: int = 0
    """Training examples that come last: unless the set is shuffled, a share of every class."""
    problems: str = ""
    """Errors of a folder, unless corrupt images are replaced."""
    notes: str = ""
    files: dict[str, list[tuple[str, int]]] | None = field(default=None, repr=False, compare=False)
    """Paths and labels of a folder, so that worker processes do not scan it."""


class Lazy(Items):
    """Examples that are read one at a time."""

    def __init__(self, items: Any, read: Callable[[Any], tuple[Any, int]]):
        self._items, self._read = items, read

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._read(self._items[int(index)])

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return (self[index] for index in range(len(self)))


def is_local(name: str) -> bool:
    """Returns whether a name is a source, starts like a path, or is a folder below this one."""
    is_path = name.startswith((".", "~", os.sep)) or (os.sep in name and os.path.isdir(name))
    return is_path or bool(_SOURCE.fullmatch(name))


def describe(name: str) -> DatasetInfo:
    """Describes a set that is read in place."""
    return (describe_source if _SOURCE.fullmatch(name) else describe_folder)(name)


@functools.lru_cache(maxsize=8)
def source(reference: str) -> dict[str, Items]:
    """Returns the splits of ``FILE.py:NAME``.

    NAME is a class or function of ``split``, or returns a source or a mapping of splits to sources.
    """
    returned = components.load(reference)
    if callable(returned):
        has_split = "split" in inspect.signature(returned).parameters
        returned = (
            {name: returned(split=name) for name in ("train", "test")} if has_split else returned()
        )
    splits = dict(returned) if isinstance(returned, Mapping) else {"train": returned}
    for one in splits.values():
        is_valid = hasattr(one, "__len__") and hasattr(one, "__getitem__")
        require(is_valid, f"{reference} is of type {type(one).__name__}, but {_CONTRACT}.")
    return {name: Lazy(one, functools.partial(_pair, reference)) for name, one in splits.items()}


def _pair(reference: str, item: Any) -> tuple[Any, int]:
    try:
        image, label = (item["image"], item["label"]) if isinstance(item, Mapping) else item
        return image, int(label)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{reference} returned {item!r:.100}, but {_CONTRACT}.") from error


@functools.lru_cache(maxsize=8)
def describe_source(reference: str) -> DatasetInfo:
    """Reads the labels and the headers of all images."""

    def measure(pair: tuple[Any, int]) -> tuple[int, ...]:
        return pair[1], *images.header(pair[0])[:3]

    with ThreadPoolExecutor() as pool:
        measured = {
            name: list(pool.map(measure, items)) for name, items in source(reference).items()
        }
    require(all(measured.values()), f"{reference} has a split without images.")
    labels, *sides = ({*values} for values in zip(*chain(*measured.values()), strict=True))
    require(min(labels) >= 0, f"{reference} has the label {min(labels)}, but they start at 0.")
    height, width, channels = (side.pop() if len(side) == 1 else None for side in sides)
    return DatasetInfo(
        name=reference,
        version=hashlib.sha256(repr(measured).encode()).hexdigest()[:16],
        directory=Path(reference),
        examples={name: len(items) for name, items in measured.items()},
        image_shape=(height, width, channels) if height and width else (None, None, channels or 3),
        num_classes=max(labels) + 1,
        classes=tuple(map(str, range(max(labels) + 1))),
        is_prepared=False,
        is_shuffled=False,
    )


class _File(NamedTuple):
    path: str
    length: int
    size: tuple[int, int] | None = None
    """Height and width; None if the file is damaged."""
    problem: str = ""
    digest: bytes = b""


def _inspect(path: str, thorough: bool) -> _File | None:
    """Reads the header of an image, or all of it; None for files of other kinds."""
    length = os.stat(path).st_size if os.path.isfile(path) else 0
    try:
        require(length > 0, "empty or missing")
        header, digest = images.header(path), b""
        if thorough:
            images.decode(path)
            digest = hashlib.sha256(Path(path).read_bytes()).digest()
        return _File(path, length, header[:2], "", digest)
    except Exception as error:  # Decoders raise many types.
        return _File(path, length, None, f"{error!s:.80}") if _is_image(path) else None


def _is_image(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    is_named_so = suffix in _UNREAD or Image.registered_extensions().get(suffix) in Image.OPEN
    return is_named_so or not os.path.exists(path)


def describe_folder(root: str, *, thorough: bool = False) -> DatasetInfo:
    """Reads ``SPLIT/CLASS/.../IMAGE`` or ``CLASS/.../IMAGE``, by the contents of the files."""
    root = os.path.abspath(os.path.expanduser(root))
    try:
        return _folder(root, thorough)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error}).") from error


@functools.lru_cache(maxsize=8)
def _folder(root: str, thorough: bool) -> DatasetInfo:
    places, kinds = _layout(root)
    paths = [(place, path) for place, group in places.items() for path in sorted(group)]
    thorough |= len(paths) <= _DECODED
    with ThreadPoolExecutor() as pool:
        read = functools.partial(_inspect, thorough=thorough)
        inspected = list(pool.map(read, (path for _, path in paths)))
    files = [(place, file) for (place, _), file in zip(paths, inspected, strict=True) if file]
    sizes = {file.size for _, file in files if file.size}
    listed = ", ".join(sorted(os.listdir(root))[:8]) or "no files"
    expected = f"{root} has no images in folders SPLIT/CLASS, such as train/dog; it has {listed}"
    require(bool(files), expected)

    classes = sorted({name for _, name in places})
    labels = {name: label for label, name in enumerate(classes)}
    keyed, copies = defaultdict(dict), defaultdict(dict)
    for (split, name), file in files:
        short = os.path.relpath(file.path, root)
        line = f"{split}/{short} {file.length}\n"
        # Sorted by hash, the classes are mixed.
        key = hashlib.sha256(line.encode(errors="surrogateescape")).digest()
        keyed[split][key] = file.path, labels[name]
        if file.digest:
            copies[file.digest].setdefault(split, short)
    complete = {(split, name) for split, _ in places for name in classes}
    lacking = complete - {place for place, _ in files}
    # Only the training needs every class, but a folder is not left empty on purpose.
    optional = {place for place in lacking - places.keys() if place[0] != "train"}
    problems = {
        "files that cannot be read": [f"{f.path}: {f.problem}" for _, f in files if f.problem],
        "classes without images": ["/".join(place) for place in sorted(lacking - optional)],
    }
    notes = {
        "missing classes": ["/".join(place) for place in sorted(optional)],
        **kinds,
        "files of other kinds": [p for (_, p), f in zip(paths, inspected, strict=True) if not f],
        "images in two splits": [" = ".join(c.values()) for c in copies.values() if len(c) > 1],
    }
    return DatasetInfo(
        name=root,
        version=hashlib.sha256(b"".join(sorted(chain(*keyed.values())))).hexdigest()[:16],
        directory=Path(root),
        examples={split: len(images) for split, images in keyed.items()},
        image_shape=(*sizes.pop(), 3) if len(sizes) == 1 else (None, None, 3),
        num_classes=len(classes),
        classes=tuple(classes),
        is_prepared=False,
        is_shuffled=False,
        problems=_counted(root, problems),
        notes=_counted(root, notes),
        files={split: [one[key] for key in sorted(one)] for split, one in keyed.items()},
    )


def _counted(root: str, kinds: Mapping[str, Sequence[str]]) -> str:
    """Returns ``ROOT: KIND: 12 (the first three, ...); ...``, or nothing."""
    texts = [
        f"{kind}: {len(names)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for kind, names in kinds.items()
        if names
    ]
    return f"{root}: {'; '.join(texts)}. See: resnet-jax data check {root}" if texts else ""


def _layout(root: str) -> tuple[dict[tuple[str, str], list[str]], dict[str, list[str]]]:
    """Returns the files of each split and class, nested folders included, and notes on others."""
    tree: dict[tuple[str, ...], list[str]] = {}
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        # Hidden files are those of systems, such as ._1.jpg of macOS.
        subfolders[:] = sorted((s for s in subfolders if not s.startswith(".")), key=str.lower)
        for path in filter(os.path.islink, (os.path.join(folder, name) for name in subfolders)):
            is_loop = os.path.realpath(folder + "/.").startswith(os.path.realpath(path) + os.sep)
            require(not is_loop, f"{path} is a link to a folder above it. Delete it.")
        paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
        tree[Path(folder).relative_to(root).parts] = paths
    tops = {parts[0]: _SPLIT.fullmatch(parts[0]) for parts in tree if parts}
    nested = {parts[0] for parts in tree if len(parts) > 1 and tops[parts[0]]}
    others = {name for name, match in tops.items() if not match}
    filled = {name for name in tops if any(map(_is_image, tree[name,]))}
    if classes := others & filled:
        # Classes may have subfolders, and may be called train.
        nested -= filled
        one, split = min(classes), ", ".join(nested)
        problem = f"{root} has images in {one}, and in folders of {split}"
        remedy = f"Move {one}, or rename {split} if it is a class."
        require(len(nested) != 1, f"{problem}. {remedy}")
    depth = int(bool(nested))
    places, folders, strays = defaultdict(list), {}, []
    for parts, paths in tree.items():
        if len(parts) <= depth or not (depth or others):
            strays += filter(_is_image, paths)
            continue
        match = tops[parts[0]]
        split = match[1].lower().replace("val", "validation") if match else parts[0]
        split = split if depth else "train"
        places[split, unicodedata.normalize("NFC", parts[depth])] += paths
        is_only = not depth or folders.setdefault(split, parts[0]) == parts[0]
        require(is_only, f"{root} has two folders for the split {split!r}. Rename one of them.")
    inner = [{parts[1] for parts in tree if parts[:1] == (top,) and parts[1:]} for top in tops]
    common = set() if depth or filled or not inner else set.intersection(*inner)
    return places, {"images outside of a class": strays, "folders in all classes": sorted(common)}


def _raise(error: OSError) -> None:
    raise error
