"""Callbacks and loggers: each tracker, read back by its own reader, has every record once; none of them can stop a run."""

import csv
import importlib.util
import json
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from resnet_jax import cli
from resnet_jax.errors import CALLBACK, Interrupted, UserError
from resnet_jax.training import loggers
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.train import train

from conftest import Told
from test_cli import fails

Point = tuple[str, int, float]


def needs(name: str, *marks: pytest.MarkDecorator) -> Any:
    reason = f"{name} is not installed: the extra [dev] has it"
    return pytest.param(name, marks=[pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=reason), *marks])


class Ends(Told):
    """Raises or requests a stop at a step."""

    def __init__(self, at: int, crashes: bool):
        super().__init__()
        self.at, self.crashes = at, crashes

    def start(self, run: loggers.Run) -> None:
        self.run = run

    def step(self, step: int, metrics: Any) -> None:
        if step == self.at and self.crashes:
            raise RuntimeError("a power cut")
        if step == self.at:
            self.run.stop()


def points(record: dict[str, Any]) -> Iterator[Point]:
    return ((f"{record['split']}/{k}", record["step"], v) for k, v in record.items() if k not in ("step", "split"))


def read_tensorboard(folder: Path) -> Iterator[Point]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "result/text_summary" in events.Tags()["tensors"]
    assert set(events.Tags()["images"]) == {"data", "confusion_matrix"}
    return ((tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))


def read_wandb(folder: Path) -> Iterator[Point]:
    """The newest session offline, a log of LevelDB: blocks of 32 KiB, headers of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # Its process writes after `finish` returns.
    *_, file = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    data, place, content = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # The whole record, or its end.
            record, content = Record.FromString(content), b""
            row = {item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in record.history.item}
            yield from ((key, row["step"], value) for key, value in row.items() if type(value) in (int, float) and "/" in key)


def read_mlflow(folder: Path) -> Iterator[Point]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("resnet-jax").experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.params["model.features"], run.data.params["seed"]) == ("[4, 8, 8]", "3")
    assert {"data.png", "confusion_matrix.png", "result.json"} <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    history = (point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key))
    return ((point.key, point.step, point.value) for point in history if not point.key.startswith("result/"))


def read_trackio(folder: Path) -> Iterator[Point]:
    import trackio

    (run,) = trackio.Api().runs("resnet-jax")
    rows = trackio.SQLiteStorage.get_logs("resnet-jax", run.name)
    assert {"data", "confusion_matrix", "result/value"} <= {key for row in rows for key in row}
    numbers = ((key, row["step"], value) for row in rows for key, value in row.items() if "/" in key)
    return ((key, step, value) for key, step, value in numbers if not key.startswith("result/"))


def read_csv(folder: Path) -> Iterator[Point]:
    for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()):
        record = {k: v if k == "split" else int(v) if k in ("step", "examples") else float(v) for k, v in row.items() if v}
        yield from points(record)


READERS: dict[str, Callable[[Path], Iterator[Point]]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "csv": read_csv,
}


@pytest.mark.filterwarnings("default")  # Of the libraries.
@pytest.mark.parametrize("name", [needs("tensorboard"), needs("wandb", pytest.mark.slow), needs("mlflow"), needs("trackio"), "csv"])
def test_tracker_has_every_record_once_after_a_crash_and_a_stop(
    name: str, tiny: Experiment, digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 9 and 10 are executed twice, and the library restarts with each session."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for function in ("preview", "confusion_matrix"):  # Which take a second.
        monkeypatch.setattr(loggers, function, lambda _: np.zeros((8, 8, 3), np.uint8))
    folder = tmp_path / "run"

    def run(callback: Told) -> None:
        logger = loggers.create("tensorboard(images=True)" if name == "tensorboard" else name)
        train(tiny, 3, folder, callbacks=[callback], loggers=[logger], data_dir=digits_dir, devices=1)
        assert not [message for message in callback.messages if "is off" in message]

    with pytest.raises(RuntimeError, match="a power cut"):
        run(Ends(10, crashes=True))
    if name == "wandb":
        time.sleep(1)  # It names the folder of a session by the second.
    with pytest.raises(Interrupted, match="stopped by a callback after step 11; the state is saved"):
        run(Ends(11, crashes=False))
    if name == "wandb":
        time.sleep(1)
    run(Told())
    times = ("seconds", "images_per_second")  # Of steps that are executed twice, MLflow keeps the first.
    expected = {(key, step): value for record in Workdir(folder).records() for key, step, value in points(record)}
    logged = [*READERS[name](folder)]
    assert Counter((key, step) for key, step, _ in logged) == Counter(expected.keys())
    for key, step, value in logged:
        if name != "mlflow" or key.rpartition("/")[2] not in times:
            assert value == pytest.approx(expected[key, step], rel=1e-6), (key, step)


class Raises:
    """A user's logger that raises in one of its methods."""

    def __init__(self, method: str):
        self._method, self.calls = method, []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self._method:
            raise OSError("No space left on device")

    def start(self, run: loggers.Run) -> None:
        run.records, run.step = (), 10**6
        self._call("start")

    def record(self, record: dict) -> None:
        record.clear()
        self._call("record")

    def end(self, result: dict) -> None:
        result.clear()
        self._call("end")


def test_logger_that_raises_is_off_and_changes_nothing(short: Experiment, short_run: Path, digits_dir: str, tmp_path: Path) -> None:
    expected = Workdir(short_run).result()
    for method in ("start", "record", "end"):
        told, made, folder = Told(), Raises(method), tmp_path / method
        result = train(short, 3, folder, callbacks=[told], loggers=[made, "csv"], data_dir=digits_dir, devices=1)
        assert expected
        assert result["state_digest"] == expected["state_digest"]
        warning = "Raises is off until the next start of the run (OSError: No space left on device)"
        assert [message for message in told.messages if "off" in message] == [warning]
        assert f"in {method}" in (folder / "debug.log").read_text()
        assert made.calls.count(method) == 1
        assert made.calls[-1] == method
        assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + len(told.records)


def test_callbacks_see_the_state_and_can_stop(short: Experiment, digits_dir: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Sees(Told):
        def start(self, run: loggers.Run) -> None:
            self.run = run

        def step(self, step: int, metrics: Any) -> None:
            seen.append((step, float(metrics.loss.sum() / metrics.examples.sum()), int(self.run.state.step)))
            self.run.step = 0

        def end(self, result: dict | None) -> None:
            seen.append(result)

    told = Sees()
    with pytest.raises((UserError, jaxtyping.TypeCheckError), match="Raises"):  # The second where annotations are checked.
        train(short, 3, tmp_path / "run", callbacks=[Raises("start")], data_dir=digits_dir, devices=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Interrupted) as caught:
        train(short, 3, tmp_path / "run", callbacks=[Ends(2, crashes=False), told], data_dir=digits_dir, devices=1)
    assert caught.value.exit_code == 128 + CALLBACK
    assert min(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) > CALLBACK
    result = train(short, 3, tmp_path / "run", callbacks=[told], data_dir=digits_dir, devices=1)
    assert [one[0] for one in seen if isinstance(one, tuple)] == [1, 2, 3, 4]
    assert [one[2] for one in seen if isinstance(one, tuple)] == [1, 2, 3, 4]
    assert [one for one in seen if not isinstance(one, tuple)] == [None, result]
    losses = [record["loss"] for record in told.records if record["split"] == "train"]
    np.testing.assert_allclose([one[1] for one in seen if isinstance(one, tuple)], losses, rtol=1e-6)


def test_confusion_matrix_has_the_errors_of_the_score(short: Experiment, digits_dir: str, tmp_path: Path) -> None:
    views = Ends(-1, crashes=False)
    result = train(short, 3, tmp_path / "run", callbacks=[views], loggers=[], data_dir=digits_dir, devices=1)
    counts = loggers.confusion_counts(views.run)
    assert (counts.sum(), counts.shape) == (360, (10, 10))
    assert 100 * (1 - counts.trace() / 360) == pytest.approx(result["value"])
    for pixels in (loggers.preview(views.run), loggers.confusion_matrix(views.run)):
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert not (tmp_path / "run" / "tensorboard").exists()


MINE = """
class Mine:
    def __init__(self, to="log.txt"):
        self.to = to
    def start(self, run): self.file = run.path / self.to
    def record(self, record): self.file.open("a").close()
    def end(self, result): self.file.write_text(str(result["value"]))
class Lacks:
    def start(self, run): ...
    def record(self, record): ...
class Fails(Lacks):
    def __init__(self): raise RuntimeError("my server is gone")
"""


def test_command_takes_loggers_and_rejects_wrong_ones(
    digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "mine.py").write_text(MINE)
    tiny = Path(__file__).parents[1] / "tiny_experiment.py"
    command = ["train", f"{tiny}:tiny", "--data-dir", digits_dir, "--devices", "1", "--workdir", str(tmp_path / "run")]
    monkeypatch.setitem(sys.modules, "wandb", None)
    for logger, message in {
        "wandbb": "no logger is called 'wandbb'; did you mean wandb?",
        "csv(path=1)": "CSV takes no argument 'path'",
        f"{file}:Lacks": "logger Lacks has no method 'end'; it needs start, record and end",
        f"{file}:Fails": "RuntimeError: my server is gone",
        "wandb": "wandb is not installed. Do: pip install 'resnet-jax-lab[wandb]'",
    }.items():
        assert message in fails(capsys, *command, "--logger", logger)
    assert not (tmp_path / "run").exists()
    cli.main([*command, "--json", "--logger", f"{file}:Mine(to='mine.txt')", "--logger", "csv"])
    value = json.loads(capsys.readouterr().out)["value"]
    assert (tmp_path / "run" / "mine.txt").read_text() == str(value)
    assert (tmp_path / "run" / "metrics.csv").exists()
