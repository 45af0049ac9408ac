"""Callbacks and loggers of a run: TensorBoard, Weights & Biases, MLflow, trackio, CSV, or your own.

``metrics.jsonl`` and the checkpoints are the truth. At the start of each session a logger purges
its tracker, or adds the records that the tracker lacks.
"""

import concurrent.futures
import contextlib
import copy
import csv
import functools
import importlib
import json
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, nearest, require
from resnet_jax.evaluation import exact, protocols
from resnet_jax.models import Execution, components
from resnet_jax.terminal import csv_text
from resnet_jax.training import config
from resnet_jax.training.checkpoint import Record
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import write_json, write_text
from resnet_jax.training.step import Metrics, TrainState
from resnet_jax.weights.loading import abstract

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = object  # Its import takes half a second.

Pixels = UInt8[np.ndarray, "h w 3"]
Captioned = tuple[Float[np.ndarray, "n h w c"], list[str]]
"""Images in [0, 1], and their classes."""


@dataclass
class Run:
    """A run in the view of callbacks and loggers. Assignments change nothing."""

    experiment: Experiment
    seed: int
    path: Path
    info: DatasetInfo
    preprocessing: Preprocessing
    stop: Callable[[], None]
    """Saves the state and raises Interrupted, as a signal does, at one step of all processes.

    The same call of ``train`` continues.
    """
    step: int
    """Number of dispatched steps."""
    state: TrainState
    """After ``step`` steps. The next dispatch frees its arrays: copy with ``jax.device_get``."""
    images: Callable[..., Captioned]
    """``train.images_of_step``."""
    records: tuple[Record, ...] = ()
    """Those of earlier sessions."""

    def __str__(self) -> str:
        begun = f"continuing after step {self.step} of" if self.step else "training for"
        scored = f"evaluation every {self.experiment.evaluation.every}"
        text = f"{begun} {self.experiment.steps} steps, {scored}, {self.experiment.schedule}"
        if (microbatches := self.experiment.optimizer.accumulation) > 1:
            images = self.experiment.batch_size // microbatches
            text += f", BatchNorm statistics over microbatches of {images} images"
        return text

    @property
    def title(self) -> str:
        return f"{self.experiment.name}, seed {self.seed}"


@runtime_checkable
class Callback(Protocol):
    """Observer of a run, in every process; override what you need. Its errors end the run."""

    def start(self, run: Run) -> None:
        """Training starts or continues after ``run.step`` steps."""

    def step(self, step: int, metrics: Metrics | None) -> None:
        """Steps up to ``step`` were dispatched; reading their ``metrics`` waits for the devices."""

    def record(self, record: Record) -> None:
        """A record was written: its step, its split (train, test, ...) and numbers."""

    def end(self, result: Record | None) -> None:
        """Training ended with the contents of ``result.json``; None: it stopped before."""

    def message(self, text: str) -> None:
        """A line for the user."""


@runtime_checkable
class Logger(Protocol):
    """The methods of a ``Callback`` that a logger has. They run on process 0, in one thread.

    A logger that raises is disabled; the run continues.
    """

    def start(self, run: Run) -> None: ...
    def record(self, record: Record) -> None: ...
    def end(self, result: Record | None) -> None: ...


class Observers(Callback):
    """Calls callbacks in order, and loggers in a thread, so that training never waits for them."""

    def __init__(self, callbacks: Sequence[Callback], loggers: Sequence[Logger]):
        for callback in callbacks:
            problem = f"callback {type(callback).__name__} lacks methods of loggers.Callback"
            require(isinstance(callback, Callback), f"{problem}: derive it from that class")
        self._callbacks, self._loggers = callbacks, [*loggers] if distributed.is_first() else []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._warnings: list[str] = []
        self._path, self._is_running = Path(), False

    def start(self, run: Run) -> None:
        self._path, self._is_running = run.path, True
        self.message(str(run))
        for callback in self._callbacks:
            callback.start(run)
        self._submit("start", run)

    def step(self, step: int, metrics: Metrics | None) -> None:
        for callback in self._callbacks:
            callback.step(step, metrics)

    def record(self, record: Record) -> None:
        for callback in self._callbacks:
            callback.record(dict(record))
        self._submit("record", record)

    def end(self, result: Record | None) -> None:
        self._is_running = False
        for callback in self._callbacks:
            callback.end(copy.deepcopy(result))
        self._submit("end", result)

    def message(self, text: str) -> None:
        for callback in self._callbacks if text else ():
            callback.message(text)

    def close(self) -> None:
        """Waits for the loggers."""
        if self._is_running:
            self.end(None)
        self._thread.shutdown()
        self._warn()

    def _submit(self, method: str, value: object) -> None:
        self._warn()
        self._thread.submit(self._log, method, value)

    def _warn(self) -> None:
        # Callbacks are not called in the thread.
        while self._warnings:
            self.message(self._warnings.pop(0))

    def _log(self, method: str, value: object) -> None:
        for logger in [*self._loggers]:
            copied = value if isinstance(value, Run) else copy.deepcopy(value)
            try:
                getattr(logger, method)(copied)
            except Exception as error:
                self._loggers.remove(logger)
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                with contextlib.suppress(OSError), (self._path / "debug.log").open("a") as file:
                    traceback.print_exc(file=file)
                name = type(logger).__name__
                self._warnings.append(f"{name} is off until the next start of the run ({reason})")


class _Tracker(Logger):
    """Sends records, the result and images, if wanted: a training batch, the confusion matrix."""

    published: Callable[[Record], Iterable[object]] = staticmethod(lambda _: ())

    def __init__(self, *, images: bool = True):
        self._images = images

    def start(self, run: Run) -> None:
        self._run = run
        self._open(run)
        for record in run.records:
            self.record(record)
        if self._images:
            self._image("data", preview(run))

    def end(self, result: Record | None) -> None:
        if result is not None:
            published = [str(number) for number in self.published(result)]
            self._result(result | {"published": published})
            # Other processes have parts of the parameters, and do not wait.
            if self._images and jax.process_count() == 1:
                self._image("confusion_matrix", confusion_matrix(self._run))
        self._close(result)

    def _open(self, run: Run) -> None:
        raise NotImplementedError

    def _result(self, result: Record) -> None:
        raise NotImplementedError

    def _image(self, name: str, pixels: Pixels) -> None:
        raise NotImplementedError

    def _close(self, result: Record | None) -> None:
        raise NotImplementedError


class TensorBoard(_Tracker):
    """Event files in ``tensorboard/``. Each session writes all records and hides earlier ones.

    ``images`` evaluates the test set once more, at the end.
    """

    def __init__(self, *, images: bool = False):
        super().__init__(images=images)

    def _open(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        # A bounded queue would block forever on a full disk.
        folder = str(run.path / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=0, max_queue=0)
        self._text("experiment", config.resolve(run.experiment))

    def record(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def _text(self, name: str, value: Record) -> None:
        self._writer.add_text(name, f"```\n{json.dumps(value, indent=1)}\n```", self._run.step)

    def _result(self, result: Record) -> None:
        self._text("result", result)

    def _image(self, name: str, pixels: Pixels) -> None:
        self._writer.add_image(name, pixels, self._run.step, dataformats="HWC")

    def _close(self, result: Record | None) -> None:  # noqa: ARG002
        self._writer.close()


class WandB(_Tracker):
    """Weights & Biases. Offline, the folder of the last session has the whole run.

    The step of W&B is the position of a record, by which W&B ignores records that it has.
    """

    def __init__(self, project: str = "resnet-jax", *, images: bool = True):
        super().__init__(images=images)
        self._project, self._wandb = project, _library("wandb")
        if distributed.is_first() and self._wandb.setup().settings.mode == "online":
            try:
                self._wandb.login()  # May ask for a key, before the run starts.
            except self._wandb.errors.UsageError as error:
                remedy = "run 'wandb login', or set WANDB_MODE=offline"
                raise UserError(f"Weights & Biases: {error}; {remedy}") from error
            except self._wandb.Error:
                pass  # No network, which turns off this logger and does not stop the run.

    def _open(self, run: Run) -> None:
        self._tracked = self._wandb.init(
            project=self._project,
            dir=str(run.path),
            id=_identity(run, "wandb", lambda: uuid.uuid4().hex),
            name=run.title,
            resume="allow",
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        values = config.resolve(run.experiment) | {"seed": run.seed}
        self._tracked.config.update(values, allow_val_change=True)
        self._tracked.define_metric("*", step_metric="step")
        self._place, self._known = 0, self._tracked.step

    def record(self, record: Record) -> None:
        if self._place >= self._known:
            row = _numbers(record) | {"step": record["step"]}
            self._tracked.log(row, step=self._place)
        self._place += 1

    def _result(self, result: Record) -> None:
        self._tracked.summary.update(result)

    def _image(self, name: str, pixels: Pixels) -> None:
        if self._place >= self._known:
            row = {name: self._wandb.Image(pixels), "step": self._run.step}
            self._tracked.log(row, step=self._place, commit=False)

    def _close(self, result: Record | None) -> None:
        self._tracked.finish(exit_code=int(result is None))


class MLflow(_Tracker):
    """MLflow, at $MLFLOW_TRACKING_URI. Numbers that it has of a step are not sent again."""

    def __init__(self, experiment: str = "resnet-jax", *, images: bool = True):
        super().__init__(images=images)
        self._name, self._mlflow = experiment, _library("mlflow")

    def _open(self, run: Run) -> None:
        self._client = client = self._mlflow.MlflowClient()
        experiment = self._mlflow.set_experiment(self._name).experiment_id

        def create() -> str:
            run_id = client.create_run(experiment, run_name=run.title).info.run_id
            values = _flat(config.resolve(run.experiment)) | {"seed": run.seed}
            for name, value in values.items():
                client.log_param(run_id, name, value)
            return run_id

        self._id = _identity(run, "mlflow", create)
        client.update_run(self._id, "RUNNING")
        names = client.get_run(self._id).data.metrics
        history = (point for name in names for point in client.get_metric_history(self._id, name))
        self._known = {(point.key, point.step) for point in history}

    def record(self, record: Record) -> None:
        self._send(_numbers(record), record["step"])

    def _send(self, numbers: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        values = {n: v for n, v in numbers.items() if (n, step) not in self._known}
        metrics = [self._mlflow.entities.Metric(n, v, now, step) for n, v in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _result(self, result: Record) -> None:
        self._send(_numbers(result | {"split": "result"}), result["steps"])
        self._client.set_tag(self._id, "published", "; ".join(result["published"]))
        self._client.log_dict(self._id, result, "result.json")

    def _image(self, name: str, pixels: Pixels) -> None:
        self._client.log_image(self._id, pixels, f"{name}.png")

    def _close(self, result: Record | None) -> None:
        self._client.set_terminated(self._id, "FINISHED" if result else "KILLED")


class Trackio(_Tracker):
    """trackio. Each session replaces the local run of the earlier ones, of the same name.

    A Space ($TRACKIO_SPACE_ID) keeps them: each has the whole run so far.
    """

    def __init__(self, project: str = "resnet-jax", *, images: bool = True):
        super().__init__(images=images)
        self._project, self._trackio = project, _library("trackio")

    def _open(self, run: Run) -> None:
        identity = _identity(run, "trackio", lambda: uuid.uuid4().hex[:8])
        name = f"{run.title}, {identity}"
        with contextlib.suppress(ValueError):  # The first run of a project.
            for earlier in self._trackio.Api().runs(self._project):
                if earlier.name == name:
                    earlier.delete()
        values = config.resolve(run.experiment) | {"seed": run.seed}
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with contextlib.redirect_stdout(sys.stderr):
            self._tracked = self._trackio.init(self._project, name, config=values, **options)

    def record(self, record: Record) -> None:
        self._tracked.log(_numbers(record), step=record["step"])

    def _result(self, result: Record) -> None:
        self.record(result | {"split": "result", "step": result["steps"]})
        text = "\n".join(result["published"])
        if text:
            self._tracked.log({"published": self._trackio.Markdown(text)}, step=result["steps"])

    def _image(self, name: str, pixels: Pixels) -> None:
        self._tracked.log({name: self._trackio.Image(pixels)}, step=self._run.step)

    def _close(self, result: Record | None) -> None:  # noqa: ARG002
        with contextlib.redirect_stdout(sys.stderr):
            self._tracked.finish()


class CSV:
    """``metrics.csv``, a row per record."""

    def start(self, run: Run) -> None:
        self._file, self._rows = run.path / "metrics.csv", [*run.records]
        self._rewrite()

    def _rewrite(self) -> None:
        self._columns = {name: "" for row in self._rows for name in row}
        write_text(self._file, csv_text(self._rows))

    def record(self, record: Record) -> None:
        self._rows.append(record)
        if record.keys() - self._columns:
            self._rewrite()
            return
        with self._file.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(record)

    def end(self, result: Record | None) -> None: ...


LOGGERS = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
    "csv": CSV,
}
DEFAULT = ("tensorboard",)


def create(
    logger: str | Logger, published: Callable[[Record], Iterable[object]] | None = None
) -> Logger:
    """Returns the logger of a name in ``LOGGERS`` or FILE.py:CLASS, with ``(ARGUMENT=VALUE)``.

    ``published``: returns the published numbers comparable with a result.
    """

    def find(name: str) -> object:
        if ":" in name:
            return components.load(name)
        hint = f"{nearest(name, LOGGERS)}; for your own write FILE.py:CLASS"
        require(name in LOGGERS, f"no logger is called {name!r}{hint}")
        return LOGGERS[name]

    instance = components.parse(logger, find)() if isinstance(logger, str) else logger
    for name in ("start", "record", "end"):
        problem = f"logger {type(instance).__name__} has no method {name!r}"
        require(
            callable(getattr(instance, name, None)), f"{problem}; it needs start, record and end"
        )
    if published is not None and isinstance(instance, _Tracker):
        instance.published = published
    return instance


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = f"Do: pip install 'resnet-jax-lab[{name}]'"
        raise UserError(f"{error.name} is not installed. {remedy}") from error


def _identity(run: Run, tracker: str, create: Callable[[], str]) -> str:
    """Returns the identity of the run in a tracker, kept in ``loggers.json``."""
    file = run.path / "loggers.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if tracker not in known:
        known[tracker] = create()
        write_json(file, known)
    return known[tracker]


def _numbers(record: Record) -> dict[str, float]:
    """Returns the numbers of a record by ``SPLIT/NAME``."""
    numbers = {f"{record['split']}/{name}": v for name, v in record.items() if name != "step"}
    return {name: v for name, v in numbers.items() if type(v) in (int, float)}


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (_flat(item, f"{prefix}.{name}" if prefix else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def preview(run: Run) -> Pixels:
    """Draws the first images of the first training step."""
    constants, of_step = run.preprocessing, {"seed": run.seed, "step": 0, "count": 16}
    return _pixels(draw_images(*run.images(run.experiment, run.info, constants, **of_step)))


def draw_images(pixels: Float[np.ndarray, "n h w c"], captions: list[str]) -> Figure:
    """Draws images in [0, 1] with their captions."""
    from matplotlib.figure import Figure

    columns = min(8, len(captions))
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.5), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, caption in zip(figure.axes, pixels, captions, strict=False):
        axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption.replace(" + ", "\n"), fontsize=7)
    return figure


def confusion_matrix(run: Run) -> Pixels:
    """Draws the number of test images by true and predicted class."""
    from matplotlib.figure import Figure

    counts, names = confusion_counts(run), run.info.classes
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(np.log1p(counts), cmap="Blues"), label="log(1 + images)")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(names) <= 20:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7)
    return _pixels(figure)


def confusion_counts(run: Run) -> Int[np.ndarray, "classes classes"]:
    """Returns the number of test images by true and predicted class."""
    evaluation, split = run.experiment.evaluation, run.experiment.data.test_split
    protocol = protocols.parse(evaluation.protocol) if evaluation.protocol else protocols.Protocol()
    apply, *_ = abstract(run.experiment.model, Execution())
    scores = jax.jit(functools.partial(exact.scores, apply=apply))
    counts = np.zeros((run.info.num_classes,) * 2, int)
    for batch in protocols.batches(run.info, split, protocol, evaluation.batch_size):
        logits = scores(*run.state.scored(), run.preprocessing, batch.images)
        predicted = np.argmax(logits, axis=1)
        is_image = batch.labels >= 0
        np.add.at(counts, (batch.labels[is_image], predicted[is_image]), 1)
    return counts


def _pixels(figure: Figure) -> Pixels:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
