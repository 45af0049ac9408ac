"""A run directory belongs to one run, is locked while it is written, and holds only what that run measured."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.errors import UserError
from resnet_jax.models import cifar_architecture
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.training import run_dir
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.run_dir import MetricsWriter, Workdir


@pytest.fixture
def claimed(tiny: Experiment, tmp_path: Path) -> Workdir:
    """The directory of seed 1 of ``tiny``."""
    (tmp_path / "run").mkdir()
    found = Workdir(tmp_path / "run")
    found.claim(tiny, 1)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_claim_writes_what_the_run_is(claimed: Workdir, tiny: Experiment, tmp_path: Path) -> None:
    """A run can be moved and claimed again."""
    assert claimed.experiment() == (tiny, 1)
    environment = json.loads((claimed.path / "environment.json").read_text())
    assert environment.keys() == {"commit", "versions", "devices", "platform", "process"}
    assert environment["versions"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    assert (environment["devices"]["backend"], environment["devices"]["count"]) == ("cpu", 8)
    before, moved = content(claimed.path), tmp_path / "elsewhere"
    assert not any(str(tmp_path).encode() in text for text in before.values())
    shutil.move(claimed.path, moved)
    Workdir(moved).claim(tiny, 1)
    assert content(moved)["experiment.json"] == before["experiment.json"]


def test_another_experiment_is_rejected_with_every_field_that_differs(claimed: Workdir, tiny: Experiment) -> None:
    model = cifar_architecture(8, shortcut=NoShortcut, input_shape=(8, 8, 1), features=(4, 8, 8))
    other = dataclasses.replace(tiny, model=model, batch_size=32, optimizer=Optimizer(weight_decay=0.5))
    before = content(claimed.path)
    with pytest.raises(UserError, match="--workdir") as error:
        Workdir(claimed.path).claim(other, 2)
    differing = [line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:]]
    assert differing == ["batch_size", "model.shortcut", "optimizer.weight_decay", "seed"]
    assert content(claimed.path) == before


def test_directory_of_something_else_is_rejected_unchanged_and_unlocked(tiny: Experiment, claimed: Workdir, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("...")
    for folder, text in {tmp_path / "thesis": "not empty and holds no run", claimed.path: "holds another run"}.items():
        before = content(folder)
        with pytest.raises(UserError, match=rf"{text}.*--workdir"):
            Workdir(folder).claim(tiny, 2)
        with pytest.raises(UserError, match=text), Workdir(folder).claimed(tiny, 2, say=pytest.fail):
            pytest.fail("it is claimed")
        assert content(folder) == before
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run", "x" * 300):
        with pytest.raises(UserError, match="--workdir"), Workdir(tmp_path / place).claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is claimed")
    with pytest.raises(UserError, match=r"not a run: it has no experiment\.json"):
        Workdir(tmp_path / "thesis").experiment()


def test_corrupt_files_are_errors(claimed: Workdir, tiny: Experiment) -> None:
    claimed.metrics_file.write_text('{1}\n{"step": 1, "split": "train"}\n')
    claimed.result_file.write_text('{"value": ')
    for use, name in ((claimed.records, "metrics.jsonl"), (claimed.result, "result.json")):
        with pytest.raises(UserError, match=f"{name} is corrupt"):
            use()
    for text in ("", '{"fingerprint": "12'):
        claimed.experiment_file.write_text(text)
        for use in (claimed.experiment, lambda: claimed.claim(tiny, 1)):
            with pytest.raises(UserError, match=r"experiment\.json is corrupt"):
                use()


def test_second_run_is_rejected_before_it_writes_and_readers_are_not(tiny: Experiment, claimed: Workdir) -> None:
    written(claimed, record(1))
    with contextlib.suppress(RuntimeError), Workdir(claimed.path).claimed(tiny, 1, say=pytest.fail):
        before = content(claimed.path)
        holder = rf"is in use by another run, process {os.getpid()} on {re.escape(socket.gethostname())} since \d{{4}}-.*--workdir"
        with pytest.raises(UserError, match=holder), claimed.claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is in use")
        assert content(claimed.path) == before
        assert (claimed.experiment(), claimed.records()) == ((tiny, 1), [record(1)])
        claimed.environment_file.unlink()
        with pytest.raises(UserError, match="is in use by another run: "), claimed.claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is in use")
        raise RuntimeError
    with claimed.claimed(tiny, 1, say=pytest.fail):
        pass


def test_file_system_without_locks_is_reported(tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    messages: list[str] = []
    with Workdir(tmp_path / "new" / "run").claimed(tiny, 1, say=messages.append):
        pass
    assert messages == [f"{tmp_path / 'new' / 'run'} cannot be locked (No locks available): no other run may use it"]


def test_read_only_file_system_is_an_error(tiny: Experiment, claimed: Workdir) -> None:
    mounts = (["mount", "--bind", str(claimed.path), str(claimed.path)], ["mount", "-o", "remount,bind,ro", str(claimed.path)])
    if any(subprocess.run(command, capture_output=True).returncode for command in mounts):
        pytest.skip("only root can mount file systems")
    try:
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\): .*use another --workdir"):
            Workdir(claimed.path).claim(tiny, 1)
        with pytest.raises(UserError, match=r"cannot be written \(Read-only"), claimed.claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is claimed")
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
            MetricsWriter(claimed, step=0)
        assert Workdir(claimed.path).experiment() == (tiny, 1)
    finally:
        subprocess.run(["umount", "-l", str(claimed.path)], check=True)


def record(step: int, split: str = "train", **numbers: float) -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 1 / step, **numbers}


def written(folder: Workdir, *records: dict[str, Any], step: int = 0) -> None:
    writer = MetricsWriter(folder, step=step)
    for one in records:
        writer.write(one)


def test_records_are_readable_at_once_and_those_after_a_resumed_step_are_dropped(claimed: Workdir) -> None:
    assert claimed.records() == []
    records = [record(1), record(4), record(4, "test", error_percent=12.5), record(5), record(6, "test")]
    writer = MetricsWriter(claimed, step=0)
    for count, one in enumerate(records, start=1):
        writer.write(one)
        assert claimed.records() == records[:count]
    with claimed.metrics_file.open("a") as file:
        file.write(json.dumps(record(7))[:-3])
    assert claimed.records() == records, "without a torn line"
    writer = MetricsWriter(claimed, step=4)
    assert writer.records == records[:3]
    writer.write(record(5, loss=0.5))
    assert [json.loads(line) for line in claimed.metrics_file.read_text().splitlines()] == [*records[:3], record(5, loss=0.5)]
    written(claimed, record(1, loss=0.25))
    assert claimed.records() == [record(1, loss=0.25)]


def test_json_is_written_whole_or_not_at_all(claimed: Workdir) -> None:
    run_dir.write_json(claimed.result_file, {"value": 1.5})
    with pytest.raises(TypeError):
        run_dir.write_json(claimed.result_file, {"value": object()})
    assert claimed.result() == {"value": 1.5}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None outside of a repository, without git, and for a package that is installed into somebody else's repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / "environment.py"))
    (tmp_path / "environment.py").write_text("")
    assert run_dir.commit() is None
    for arguments in (("init",), ("add", "."), ("commit", "-m", "one")):
        git(*arguments)
    (tmp_path / "untracked.txt").write_text("")
    assert run_dir.commit() == git("rev-parse", "HEAD")
    (tmp_path / "environment.py").write_text("changed")
    assert run_dir.commit() == git("rev-parse", "HEAD") + "-dirty"
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert run_dir.commit() is None
    monkeypatch.setattr(run_dir, "__file__", str(tmp_path / "untracked.txt"))
    assert run_dir.commit() is None
