"""Things named by file or module, and what is said where they are not there."""

from pathlib import Path

import pytest

from resnet_jax import references
from resnet_jax.errors import UserError
from resnet_jax.models.shortcuts import ZeroPad

FILE = """
import math
from collections import OrderedDict

CONSTANT = 3


def resnet20():
    return "twenty"


def resnet56():
    return "fifty-six"


class Shortcut:
    pass


def _private():
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_function_and_class_of_a_file_are_loaded(file: Path) -> None:
    assert references.load(f"{file}:resnet20")() == "twenty"
    assert references.load(f"{file}:Shortcut").__name__ == "Shortcut"


def test_file_is_imported_once(file: Path) -> None:
    """Otherwise a class would not be itself."""
    assert references.load(f"{file}:Shortcut") is references.load(f"{file.parent}/../{file.parent.name}/mine.py:Shortcut")


def test_relative_path_and_home_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    assert references.load("mine.py:resnet20") is references.load(f"{file}:resnet20") is references.load("~/mine.py:resnet20")


def test_class_of_a_module_is_loaded_and_described() -> None:
    assert references.load("resnet_jax.models.shortcuts:ZeroPad") is ZeroPad
    assert references.describe(ZeroPad) == "resnet_jax.models.shortcuts:ZeroPad"


def test_own_class_is_described_by_its_file_and_found_again(file: Path) -> None:
    own = references.load(f"{file}:Shortcut")
    assert references.describe(own) == f"{file}:Shortcut"
    assert references.load(references.describe(own)) is own


def test_public_names_are_what_the_file_itself_defines(file: Path) -> None:
    """Neither its imports, nor its constants, nor what begins with an underscore."""
    assert references.public_names(references.load_file(file)) == ["resnet20", "resnet56", "Shortcut"]


def test_files_whose_paths_are_alike_are_two_files(tmp_path: Path) -> None:
    """v1.0/a.py is not v1_0/a.py."""
    for folder in ("v1.0", "v1_0"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(f"def f():\n    return {folder!r}\n")
    assert [references.load(f"{tmp_path / folder / 'a.py'}:f")() for folder in ("v1.0", "v1_0")] == ["v1.0", "v1_0"]


def test_missing_file_is_an_error_with_the_nearest_one(file: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*mime\.py; did you mean .*mine\.py"):
        references.load(f"{file.parent}/mime.py:resnet20")


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nowhere/mine\.py$"):
        references.load(f"{tmp_path}/nowhere/mine.py:resnet20")


def test_missing_name_is_an_error_with_the_nearest_one(file: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.py has no 'resnet21'; did you mean resnet20"):
        references.load(f"{file}:resnet21")


def test_name_like_no_other_is_an_error_with_all_there_are(file: Path) -> None:
    with pytest.raises(UserError, match="there is Shortcut, resnet20, resnet56"):
        references.load(f"{file}:zzz")


def test_file_without_a_name_is_an_error_with_the_names_there_are(file: Path) -> None:
    with pytest.raises(UserError, match=r"write FILE\.py:NAME.*resnet20, resnet56, Shortcut"):
        references.load(str(file))


@pytest.mark.parametrize("reference", ["resnet20", "", ":resnet20", "mine.py:", "./mine:resnet20"])
def test_what_is_no_reference_is_an_error_that_shows_one(reference: str) -> None:
    with pytest.raises(UserError):
        references.load(reference)


@pytest.mark.parametrize("module", ["resnet_jaxx", "resnet_jax.modells", "resnet_jax.models.branches.basic", "nosuchpackage.sub"])
def test_missing_module_is_an_error(module: str) -> None:
    with pytest.raises(UserError, match=f"there is no module '{module}'"):
        references.load(f"{module}:Thing")


def test_missing_name_of_a_module_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"has no 'ZeroPat'; did you mean ZeroPad"):
        references.load("resnet_jax.models.shortcuts:ZeroPat")


@pytest.mark.parametrize("name", ["lacking", "nosuchdependency_tools"])
def test_module_that_lacks_a_dependency_of_its_own_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is there: to say that it is not would send the user looking in the wrong place. Whatever it is called."""
    (tmp_path / f"{name}.py").write_text("import nosuchdependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nosuchdependency'"):
        references.load(f"{name}:thing")


def test_file_that_fails_is_not_remembered_as_imported(tmp_path: Path) -> None:
    """Corrected, it loads."""
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first')\n")
    with pytest.raises(RuntimeError, match="first"):
        references.load(f"{path}:f")
    path.write_text("def f():\n    return 'corrected at last'\n")
    assert references.load(f"{path}:f")() == "corrected at last"
