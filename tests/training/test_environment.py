"""Commit, versions and devices of a run."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from resnet_jax.training import run_dir


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / "environment.py"))
    for name in ("environment.py", "other.py"):
        (tmp_path / name).write_text("")
    assert run_dir.commit() is None, "outside a repository"
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "untracked.txt").write_text("")
    assert run_dir.commit() == git("rev-parse", "HEAD")
    (tmp_path / "other.py").write_text("changed")
    assert run_dir.commit() == git("rev-parse", "HEAD") + "-dirty"
    # Installed into somebody else's repository.
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / ".venv" / "environment.py"))
    assert run_dir.commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_dir.commit() is None, "without git"


def test_description_is_json_with_versions_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "PACKAGES", (*run_dir.PACKAGES, "nosuchpackage"))
    found = json.loads(json.dumps(run_dir.describe()))
    assert found.keys() == {"commit", "versions", "devices", "platform"}
    assert found["versions"]["python"] == platform.python_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy"):
        assert found["versions"][package] == importlib.metadata.version(package)
    assert found["versions"]["nosuchpackage"] == "not installed as a package"
    devices = found["devices"]
    assert (devices["backend"], devices["kind"], devices["count"], devices["processes"]) == ("cpu", "cpu", 8, 1)
    assert devices["cores"] >= 1
