"""200 random damages to the text files of runs: a run is repaired, or named in one sentence; no result differs silently."""

import contextlib
import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnet_jax import cli
from resnet_jax.errors import UserError
from resnet_jax.studies import results
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.config import Checkpointing, Experiment
from resnet_jax.training.run_dir import MetricsWriter, Workdir
from resnet_jax.training.step import digest

from training.test_checkpoint import constants, shapes, state

RECORDS = [{"step": step, "split": "train", "loss": 1 / step, "error_percent": 90.0 / step} for step in range(1, 5)]
WHOLE = (b"", b"\n", b"{}", b"[]", b"null", b'{"value": 1', b"\xff\xfe", b"3", b'"text"\n' * 3)


def damaged(text: bytes, rng: np.random.Generator) -> bytes:
    """Returns a text with one random damage."""
    kind, place, lines = rng.integers(9), int(rng.integers(len(text))), text.split(b"\n")
    line = int(rng.integers(len(lines)))
    digits = [index for index, byte in enumerate(text) if chr(byte).isdigit()]
    digit = int(rng.choice(digits)) if digits else 0
    return (
        text[:place] + bytes([text[place] ^ 1 << int(rng.integers(8))]) + text[place + 1 :],
        text[:digit] + str((int(text[digit : digit + 1] or 0) + 1) % 10).encode() + text[digit + 1 :],
        text[:place],
        text[:place] + text[place + 1 :],
        text[:place] + b"\xff" + text[place:],
        b"\n".join(lines[:line] + lines[line + 1 :]),
        b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        b"\n".join([*lines[:line], b"", *lines[line:]]),
        WHOLE[int(rng.integers(len(WHOLE)))],
    )[kind]


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def copies(run: Path, place: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Yields copies of a run with one damaged text file each, and the file."""
    texts = [
        path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".jsonl") or path.name in ("metrics", "_CHECKPOINT_METADATA")
    ]
    texts = [path.relative_to(run) for path in texts if path.is_file() and path.name != "environment.json"]
    rng = np.random.default_rng(seed)
    for number in range(count):
        # Every file equally often.
        name, copy = texts[number % len(texts)], place / f"{number}" / "run"
        shutil.copytree(run, copy)
        changed = (run / name).read_bytes()
        while changed == (run / name).read_bytes():
            changed = damaged((run / name).read_bytes(), rng)
        (copy / name).write_bytes(changed)
        yield copy, f"{number}: {name}: {changed[:300]!r}"


def reported(run: Path) -> tuple[Any, ...]:
    """Returns what a report shows of one run."""
    ((variant,),) = (results.collect([run]),)
    (one,) = variant.runs
    return variant.name, one.seed, one.result, variant.experiment, Workdir(run).records()


def test_report_names_a_damaged_finished_run(short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished, named, unharmed = tmp_path / "finished", 0, 0
    shutil.copytree(short_run, finished, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    *before, result, model, records = reported(finished)
    for run, what in copies(finished, tmp_path, 140, seed=1):
        try:
            with at_most(20):
                *same, changed, other, lines = reported(run)
        except UserError as error:
            named += f"{run}" in str(error) and "\n" not in str(error)
            continue
        assert (same, {name: changed[name] for name in result}, other, lines) == (before, result, model, records), what
        unharmed += 1
    assert named == 140 - unharmed > 110
    # Beside another run.
    both = tmp_path / "both"
    for name in ("good", "bad"):
        shutil.copytree(finished, both / name)
    text = (both / "bad" / "metrics.jsonl").read_text()
    (both / "bad" / "metrics.jsonl").write_text(text.replace("1", "2", 1))
    (both / "study.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(both), "--json"])
    out, err = capsys.readouterr()
    assert [row["seeds"] for row in json.loads(out)] == [1]
    assert f"{both}/bad/metrics.jsonl is corrupt (its content has changed)" in err
    assert f"{both}/study.json is corrupt" in err


def continued(run: Path, experiment: Experiment) -> tuple[int, str, list[dict[str, Any]], list[str]]:
    """Does what ``train`` does before its first step; returns the step, its state and records, and messages."""
    said: list[str] = []
    workdir = Workdir(run)
    with workdir.claimed(experiment, 1, say=said.append):
        fingerprint = workdir.read_experiment_file()["fingerprint"]
        checkpoints = Checkpoints(workdir.checkpoints, Checkpointing(), say=said.append, fingerprint=fingerprint)
        with contextlib.closing(checkpoints):
            assert workdir.result(said.append) is None
            step, restored, _ = checkpoints.restore_newest(shapes(state(0)), shapes(constants(0))) or (0, state(0), None)
            log = MetricsWriter(workdir, step=step, records=checkpoints.records(step), say=said.append)
            return step, digest(restored), log.records, said


def test_train_continues_a_damaged_run_from_intact_files(tiny: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    workdir, experiment = Workdir(run), dataclasses.replace(tiny, name="damaged")
    workdir.claim(experiment, 1)
    workdir.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    fingerprint = workdir.read_experiment_file()["fingerprint"]
    with contextlib.closing(Checkpoints(workdir.checkpoints, Checkpointing(), say=pytest.fail, fingerprint=fingerprint)) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state(step), constants(step), 50.0, RECORDS[:step])
    named = continued_runs = repaired = 0
    for damaged_run, what in copies(run, tmp_path, 60, seed=2):
        try:
            with at_most(20):
                step, restored, records, said = continued(damaged_run, experiment)
        except UserError as error:
            named += f"{damaged_run}" in str(error)
            continue
        assert restored == digest(state(step)), what
        assert records == RECORDS[:step], what
        assert Workdir(damaged_run).records() == records, what
        assert step == 4 or said, what
        continued_runs += 1
        repaired += bool(said)
    assert (named + continued_runs, repaired > 20) == (60, True)
