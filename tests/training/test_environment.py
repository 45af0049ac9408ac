"""Where a run took place, as far as its files can tell."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from resnet_jax.training import environment

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, which the code believes to run from."""
    git(tmp_path, "init")
    for name in ("environment.py", "other.py"):
        (tmp_path / name).write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    return tmp_path


@needs_git
def test_commit_is_that_of_the_checkout(checkout: Path) -> None:
    assert environment.commit() == git(checkout, "rev-parse", "HEAD")


@needs_git
def test_commit_with_changed_files_is_dirty(checkout: Path) -> None:
    """A file that git does not know is no change."""
    (checkout / "notes.txt").write_text("")
    assert environment.commit() == git(checkout, "rev-parse", "HEAD")
    (checkout / "other.py").write_text("changed")
    assert environment.commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


@needs_git
def test_installed_into_somebody_else_s_repository_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are not that repository's."""
    installed = checkout / ".venv" / "environment.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert environment.commit() is None


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.commit() is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit() is None


def test_versions_are_those_installed() -> None:
    found = environment.versions()
    assert found["python"] == platform.python_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy"):
        assert found[package] == importlib.metadata.version(package)
    assert "resnet-jax-lab" in found


def test_package_that_is_not_installed_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("nosuchpackage",))
    assert environment.versions()["nosuchpackage"] == "not installed as a package"


def test_devices_are_the_eight_virtual_ones_of_the_tests() -> None:
    found = environment.devices()
    assert (found["backend"], found["kind"], found["count"], found["processes"]) == ("cpu", "cpu", 8, 1)
    assert found["cores"] >= 1


def test_description_is_json_with_all_of_it() -> None:
    found = json.loads(json.dumps(environment.describe()))
    assert found.keys() == {"commit", "versions", "devices", "platform"}
    assert found["platform"] == platform.platform()
