"""References to functions and classes of files and modules, and messages for missing ones."""

from pathlib import Path

import pytest
from resnet_jax.errors import UserError
from resnet_jax.models import components
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


def test_file_is_imported_once_by_any_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a class would not equal itself."""
    assert components.load(f"{file}:resnet20")() == "twenty"
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    for path in (f"{file.parent}/../{file.parent.name}/mine.py", "mine.py", "~/mine.py"):
        assert components.load(f"{path}:Shortcut") is components.load(f"{file}:Shortcut")


def test_description_is_a_reference(file: Path) -> None:
    assert components.load("resnet_jax.models.shortcuts:ZeroPad") is ZeroPad
    assert components.describe(ZeroPad) == "resnet_jax.models.shortcuts:ZeroPad"
    own = components.load(f"{file}:Shortcut")
    assert components.describe(own) == f"{file}:Shortcut"
    assert components.load(components.describe(own)) is own


def test_public_names_are_defined_in_the_file(file: Path) -> None:
    """Imports, constants and underscored names are left out."""
    assert components.public_names(components.load_file(file)) == ["resnet20", "resnet56", "Shortcut"]


def test_files_with_similar_paths_are_two_modules(tmp_path: Path) -> None:
    for folder in ("v1.0", "v1_0"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(f"def f():\n    return {folder!r}\n")
    assert [components.load(f"{tmp_path / folder / 'a.py'}:f")() for folder in ("v1.0", "v1_0")] == ["v1.0", "v1_0"]


def test_missing_reference_names_the_nearest(file: Path) -> None:
    for reference, message in (
        (f"{file.parent}/mime.py:resnet20", r"there is no file .*mime\.py; did you mean .*mine\.py"),
        (f"{file.parent}/nowhere/mine.py:f", r"there is no file .*nowhere/mine\.py$"),
        (f"{file}:resnet21", r"mine\.py has no 'resnet21'; did you mean resnet20"),
        (f"{file}:zzz", "there is Shortcut, resnet20, resnet56"),
        (str(file), r"write FILE\.py:NAME.*resnet20, resnet56, Shortcut"),
        ("resnet_jax.models.shortcuts:ZeroPat", r"has no 'ZeroPat'; did you mean ZeroPad"),
        ("resnet_jaxx:Thing", "there is no module 'resnet_jaxx'"),
        ("resnet_jax.models.blocks.basic:Thing", "there is no module 'resnet_jax.models.blocks.basic'"),
        ("", "names no function or class"),
        (":resnet20", "neither a module nor a file"),
        ("./mine:resnet20", "neither a module nor a file"),
        ("mine.py:", "names no function or class"),
    ):
        with pytest.raises(UserError, match=message):
            components.load(reference)


def test_module_without_its_dependency_names_the_dependency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lacking", "nosuchdependency_tools"):
        (tmp_path / f"{name}.py").write_text("import nosuchdependency\n")
        with pytest.raises(ModuleNotFoundError, match="nosuchdependency'"):
            components.load(f"{name}:thing")


def test_file_that_fails_can_be_corrected(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('first')\n")
    with pytest.raises(RuntimeError, match="first"):
        components.load(f"{path}:f")
    path.write_text("def f():\n    return 'corrected at last'\n")
    assert components.load(f"{path}:f")() == "corrected at last"
