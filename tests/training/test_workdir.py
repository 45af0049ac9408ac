"""A folder belongs to one run, and says only what that run measured."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resnet_jax.errors import UserError
from resnet_jax.models import Execution, cifar_architecture
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.training import resolved, workdir
from resnet_jax.training.experiment import Checkpointing, Experiment, Optimizer
from resnet_jax.training.workdir import MetricsWriter, Workdir


@pytest.fixture
def claimed(tiny: Experiment, tmp_path: Path) -> Workdir:
    """The folder of seed 1 of ``tiny``."""
    found = Workdir(tmp_path / "runs" / "tiny")
    found.claim(tiny, 1)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_claiming_makes_the_folder_and_says_what_it_is(claimed: Workdir, tiny: Experiment) -> None:
    """Folders above it too; the experiment can be read back."""
    text = json.loads((claimed.path / "experiment.json").read_text())
    assert text["seed"] == 1
    assert text["fingerprint"] == resolved.fingerprint(text["identity"])
    assert text["experiment"]["model"]["shortcut"] == "resnet_jax.models.shortcuts:ZeroPad"
    assert Workdir(claimed.path).experiment() == (tiny, 1)
    environment = json.loads((claimed.path / "environment.json").read_text())
    assert environment["devices"]["count"] == 8


def test_same_run_may_claim_it_again(claimed: Workdir, tiny: Experiment) -> None:
    before = claimed.experiment_file.read_bytes()
    Workdir(claimed.path).claim(tiny, 1)
    assert claimed.experiment_file.read_bytes() == before


def test_empty_folder_can_be_claimed(tiny: Experiment, tmp_path: Path) -> None:
    Workdir(tmp_path).claim(tiny, 0)
    assert (tmp_path / "experiment.json").is_file()


@pytest.mark.parametrize(
    "fields",
    [{"name": "other"}, {"checkpointing": Checkpointing(every=1)}, {"execution": Execution(blocks="loop")}],
    ids=["name", "checkpointing", "execution"],
)
def test_what_changes_no_result_may_change(claimed: Workdir, tiny: Experiment, fields: dict[str, Any]) -> None:
    Workdir(claimed.path).claim(dataclasses.replace(tiny, **fields), 1)


def test_another_experiment_is_refused_with_every_field_that_differs(claimed: Workdir, tiny: Experiment) -> None:
    """And nothing in the folder changes."""
    model = cifar_architecture(8, shortcut=NoShortcut, input_shape=(8, 8, 1), features=(4, 8, 8))
    other = dataclasses.replace(tiny, model=model, batch_size=32, optimizer=Optimizer(weight_decay=0.5))
    before = content(claimed.path)
    with pytest.raises(UserError) as error:
        Workdir(claimed.path).claim(other, 2)
    head, *fields = str(error.value).splitlines()
    assert str(claimed.path) in head
    assert "--workdir" in head
    assert [field.strip() for field in fields] == [
        "batch_size: 32 asked for, 64 in the run",
        "model.shortcut: 'resnet_jax.models.shortcuts:NoShortcut' asked for, 'resnet_jax.models.shortcuts:ZeroPad' in the run",
        "optimizer.weight_decay: 0.5 asked for, 0.0001 in the run",
        "seed: 2 asked for, 1 in the run",
    ]
    assert content(claimed.path) == before


def test_folder_of_something_else_is_refused_and_left_alone(tiny: Experiment, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match=r"not empty and holds no run.*--workdir"):
        Workdir(tmp_path).claim(tiny, 0)
    assert content(tmp_path) == {"thesis.tex": b"..."}


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_place_where_no_folder_can_be_is_refused(tiny: Experiment, tmp_path: Path, place: str) -> None:
    """A file, and a folder inside a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--workdir"):
        Workdir(tmp_path / place).claim(tiny, 0)
    assert content(tmp_path) == {"file": b"mine"}


def test_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run: it has no experiment\.json"):
        Workdir(tmp_path).experiment()


@pytest.mark.parametrize("text", ["", '{"fingerprint": "12', "{}", "[]"], ids=["empty", "cut off", "without fields", "of another kind"])
def test_damaged_experiment_file_is_a_user_error(claimed: Workdir, tiny: Experiment, text: str) -> None:
    """For whoever reads it and for whoever would continue the run."""
    claimed.experiment_file.write_text(text)
    with pytest.raises(UserError, match=r"experiment\.json is damaged"):
        Workdir(claimed.path).experiment()
    with pytest.raises(UserError, match=r"experiment\.json is damaged"):
        Workdir(claimed.path).claim(tiny, 1)


def record(step: int, split: str = "train", **numbers: float) -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 1 / step, **numbers}


def written(folder: Workdir, *records: dict[str, Any], step: int = 0) -> None:
    writer = MetricsWriter(folder, step=step)
    for one in records:
        writer.write(one)
    writer.close()


def test_records_are_lines_of_json_in_order(claimed: Workdir) -> None:
    records = [record(1), record(2), record(2, "test", error_percent=12.5)]
    written(claimed, *records)
    assert [json.loads(line) for line in (claimed.path / "metrics.jsonl").read_text().splitlines()] == records
    assert claimed.records() == records


def test_record_is_in_the_file_as_soon_as_it_is_written(claimed: Workdir) -> None:
    """Whoever watches, or comes after a kill, finds it."""
    writer = MetricsWriter(claimed, step=0)
    writer.write(record(1))
    assert Workdir(claimed.path).records() == [record(1)]
    writer.close()


def test_continuing_drops_what_was_measured_after_the_restored_step(claimed: Workdir) -> None:
    """And keeps the rest, that step's included, in the file and for the run that goes on."""
    written(claimed, record(1), record(4), record(4, "test"), record(5), record(6, "test"))
    writer = MetricsWriter(claimed, step=4)
    assert writer.kept == [record(1), record(4), record(4, "test")]
    writer.write(record(5, loss=0.5))
    writer.close()
    assert claimed.records() == [record(1), record(4), record(4, "test"), record(5, loss=0.5)]


def test_beginning_again_drops_everything(claimed: Workdir) -> None:
    written(claimed, record(1), record(2))
    written(claimed, record(1, loss=0.25))
    assert claimed.records() == [record(1, loss=0.25)]


def test_last_line_cut_off_anywhere_is_left_out(claimed: Workdir) -> None:
    """After each of its characters but the last."""
    written(claimed, record(1), record(2))
    whole, line = claimed.metrics_file.read_text(), json.dumps(record(3, "test", error_percent=12.5))
    for kept in range(1, len(line)):
        claimed.metrics_file.write_text(whole + line[:kept])
        assert claimed.records() == [record(1), record(2)]


def test_line_cut_off_is_gone_once_the_run_continues(claimed: Workdir) -> None:
    """What comes next begins on a line of its own."""
    written(claimed, record(1), record(2))
    with claimed.metrics_file.open("a") as file:
        file.write('{"step": 3, "spl')
    written(claimed, record(3), step=2)
    assert claimed.metrics_file.read_text() == "".join(json.dumps(record(step)) + "\n" for step in (1, 2, 3))


def test_no_records_before_the_first(claimed: Workdir) -> None:
    assert claimed.records() == []


def test_records_reach_tensorboard(claimed: Workdir) -> None:
    """Under split/number."""
    written(claimed, record(1), record(2, "test", error_percent=12.5))
    (events,) = (claimed.path / "tensorboard").iterdir()
    for tag in (b"train/loss", b"test/error_percent"):
        assert tag in events.read_bytes()


def test_result_is_none_until_it_is_written(claimed: Workdir) -> None:
    assert claimed.result() is None
    workdir.write_json(claimed.result_file, {"value": 1.5})
    assert claimed.result() == {"value": 1.5}


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    workdir.write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}
    assert content(tmp_path).keys() == {"result.json"}


def test_run_can_be_moved(claimed: Workdir, tiny: Experiment, tmp_path: Path) -> None:
    """Nothing in it knows where it is."""
    moved = tmp_path / "elsewhere"
    shutil.move(claimed.path, moved)
    assert not any(str(tmp_path).encode() in text for text in content(moved).values())
    Workdir(moved).claim(tiny, 1)


def test_second_run_is_refused_before_anything_is_written_and_readers_are_not(tiny: Experiment, tmp_path: Path, claimed: Workdir) -> None:
    """Whoever evaluates it or makes a report of it comes in; it can be continued as soon as the first run has ended."""
    written(claimed, record(1))
    with Workdir(claimed.path).claimed(tiny, 1, say=pytest.fail):
        before = content(claimed.path)
        with pytest.raises(UserError, match=r"is in use by another run.*--workdir"), claimed.claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is in use")
        assert content(claimed.path) == before
        assert Workdir(claimed.path).experiment() == (tiny, 1)
        assert Workdir(claimed.path).records() == [record(1)]
    with claimed.claimed(tiny, 1, say=pytest.fail):
        pass
    assert "run.lock" not in content(claimed.path)


def test_folder_that_is_not_the_runs_is_not_locked(tiny: Experiment, tmp_path: Path, claimed: Workdir) -> None:
    """It is refused as it is found."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("...")
    for folder, expected in {tmp_path / "thesis": "holds no run", claimed.path: "holds another run"}.items():
        before = content(folder)
        with pytest.raises(UserError, match=expected), Workdir(folder).claimed(tiny, 2, say=pytest.fail):
            pytest.fail("it is refused")
        assert content(folder) == before


def test_folder_of_a_run_that_died_before_it_wrote_anything_can_be_claimed(tiny: Experiment, tmp_path: Path) -> None:
    """All that it left is its lock, which is nobody's."""
    (tmp_path / "run.lock").write_text("")
    with Workdir(tmp_path).claimed(tiny, 1, say=pytest.fail):
        assert (tmp_path / "experiment.json").is_file()


def test_folder_that_cannot_be_written_is_refused(tiny: Experiment, claimed: Workdir) -> None:
    """A run that is to go on, on a file system that is mounted read-only."""
    mounts = (["mount", "--bind", str(claimed.path), str(claimed.path)], ["mount", "-o", "remount,bind,ro", str(claimed.path)])
    if any(subprocess.run(command, capture_output=True).returncode for command in mounts):
        pytest.skip("file systems can be mounted by root only")
    try:
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\): use another --workdir"):
            Workdir(claimed.path).claim(tiny, 1)
        with pytest.raises(UserError, match=r"cannot be written \(Read-only"), claimed.claimed(tiny, 1, say=pytest.fail):
            pytest.fail("it is refused")
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
            MetricsWriter(claimed, step=0)
        assert Workdir(claimed.path).experiment() == (tiny, 1)
    finally:
        subprocess.run(["umount", "-l", str(claimed.path)], check=True)
