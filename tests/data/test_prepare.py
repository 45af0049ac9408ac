"""A set is prepared once, without TensorFlow, or not at all."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_jax.data import prepare, sources
from resnet_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(sources, "HOME_DATA_DIR", tmp_path / "home")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write to, root included as far as good manners go."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def snapshot(directory: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in directory.rglob("*")}


def test_digits_are_prepared_and_read_without_tensorflow(tmp_path: Path) -> None:
    """Fails where TensorFlow is imported, and where it is needed and missing."""
    program = """
import sys
from resnet_jax.data import prepare, sources
info = prepare.prepare("digits", sys.argv[1])
print(len(sources.read(info, "train")), "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1437 False"


def test_describing_a_set_imports_neither_tfds_nor_tensorflow(digits_dir: str) -> None:
    """What every command does first stays fast."""
    program = """
import sys
from resnet_jax.data import sources
sources.describe("digits", sys.argv[1])
print(sorted({"tensorflow", "tensorflow_datasets", "sklearn", "array_record"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program, digits_dir], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_prepared_set_is_left_as_it_is(digits_dir: str) -> None:
    before = snapshot(Path(digits_dir))
    assert prepare.prepare("digits", digits_dir) == sources.describe("digits", digits_dir)
    assert snapshot(Path(digits_dir)) == before


def test_set_that_another_directory_holds_is_prepared_where_it_is_asked_for(
    digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--data-dir DIR`` means DIR."""
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    assert prepare.prepare("digits", str(tmp_path)).directory == tmp_path / "digits" / "1.0.0"


def test_advice_to_prepare_elsewhere_what_is_in_another_format_can_be_followed(
    digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``describe`` refuses tfrecord files with "Prepare it in another directory: resnet-jax prepare digits --data-dir DIR"."""
    shutil.copytree(digits_dir, tmp_path / "old")
    info = tmp_path / "old" / "digits" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "old"))
    with pytest.raises(UserError, match="resnet-jax prepare digits --data-dir DIR"):
        sources.describe("digits")
    assert prepare.prepare("digits", str(tmp_path / "new")).directory == tmp_path / "new" / "digits" / "1.0.0"


def test_preparation_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    """What it left behind is no prepared set: not for training, and not for ``prepare`` either."""
    left = tmp_path / "digits" / "incomplete.6J53Q8_1.0.0"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text("{}")
    assert prepare.prepare("digits", str(tmp_path)).directory == tmp_path / "digits" / "1.0.0"


def test_environment_says_where_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that does not exist yet is made."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a" / "b"))
    assert prepare.prepare("digits").directory == tmp_path / "a" / "b" / "digits" / "1.0.0"


@pytest.mark.parametrize("below", ["", "new/folder"])
def test_read_only_directory_is_an_error_and_nothing_is_written(read_only: Path, below: str) -> None:
    with pytest.raises(UserError, match=r"cannot be written.*--data-dir"):
        prepare.prepare("digits", str(read_only / below))
    assert list(read_only.iterdir()) == []


@pytest.mark.parametrize(("name", "suggestion"), [("cifar01", "cifar10"), ("digit", "digits"), ("imagenet", "imagenet2012")])
def test_unknown_name_suggests_the_nearest(tmp_path: Path, name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*did you mean.*{suggestion}"):
        prepare.prepare(name, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_smaller_copies_and_folders_say_how_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagenet2012_256'; .* run: resnet-jax prepare imagenet2012 --resize 256$"):
        prepare.prepare("imagenet2012_256", str(tmp_path / "new"))
    with pytest.raises(UserError, match="is a folder: it is read where it lies"):
        prepare.prepare(str(tmp_path), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_set_whose_preparation_needs_tensorflow_says_so_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match="pip install tensorflow"):
        prepare.prepare("cifar100", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_host_that_cannot_be_reached_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS would try for minutes; nothing is written."""

    def refuse(address: tuple[str, int], **_: object) -> None:
        raise OSError(f"no route to {address[0]}")

    monkeypatch.setattr(prepare.urllib.request, "getproxies", dict)
    monkeypatch.setattr(prepare.socket, "create_connection", refuse)
    with pytest.raises(UserError, match=r"cifar10 is downloaded from .*toronto.*no route to .*toronto"):
        prepare.prepare("cifar10", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_failed_download_is_an_error_of_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the set, the place, and what the HTTP client said; and the set does not count as prepared."""
    from resnet_jax.data.cifar10 import Cifar10

    def refuse(_: Cifar10) -> None:
        raise ConnectionError("cut off")

    monkeypatch.setattr(prepare.socket, "create_connection", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(Cifar10, "download_and_prepare", refuse)
    with pytest.raises(UserError, match=r"cifar10.*ConnectionError: cut off") as error:
        prepare.prepare("cifar10", str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert sources.prepared(str(tmp_path)) == {}
