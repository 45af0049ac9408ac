"""Hyperparameter search: trials scored on held-out training images, the winner on fresh seeds."""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import filelock

from resnet_jax.data import datasets
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError, require
from resnet_jax.models import components
from resnet_jax.studies import study as study_lib
from resnet_jax.terminal import RunProgress
from resnet_jax.training import sharding
from resnet_jax.training.config import HELD_OUT, Experiment
from resnet_jax.training.run_dir import Record, Workdir
from resnet_jax.training.train import train

if TYPE_CHECKING:
    import optuna

SEED = 0
"""Seed of every trial; the winner has other ones."""


@dataclass(frozen=True)
class Uniform:
    """Search space of a number, the annotation of a parameter; both ends are included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        require(self.low < self.high, f"{self} must have a low end below the high one.")


class LogUniform(Uniform):
    """Uniform in the logarithm."""

    def __post_init__(self) -> None:
        require(0 < self.low < self.high, f"{self} must have positive ends, the low one first.")


class Recipe:
    """A function FILE.py:FUNCTION that returns an experiment, and its search space."""

    def __init__(self, reference: str):
        self.reference, self._function = reference, components.load(reference)
        hints = typing.get_type_hints(self._function, include_extras=True)
        self.space: dict[str, object] = {}
        for name, parameter in inspect.signature(self._function).parameters.items():
            hint = hints.get(name)
            if _is_space(hint):
                self.space[name] = hint
            elif parameter.default is parameter.empty:
                allowed = "Annotated[float, LogUniform(0.01, 1)], Annotated[int, Uniform(1, 4)]"
                remedy = f"annotate it with a search space: {allowed} or Literal['A', 'B']"
                raise UserError(f"{reference}: {name} has no default; {remedy}")
        require(bool(self.space), f"{reference} has no parameter with a search space")

    def __call__(self, values: Mapping[str, object]) -> Experiment:
        experiment = self._function(**values)
        require(isinstance(experiment, Experiment), f"{self.reference} returned no experiment")
        held_out = experiment.data.validation_examples
        problem = "trials are compared on held-out training images, never on the test set"
        require(held_out > 0, f"{self.reference}: set data.validation_examples above 0: {problem}")
        return experiment

    def suggest(self, trial: "optuna.Trial") -> dict[str, object]:
        """Draws values, or returns those that the trial has."""
        return {name: _suggest(trial, name, hint) for name, hint in self.space.items()}


def _is_space(hint: object) -> bool:
    if typing.get_origin(hint) is Annotated:
        kind, *others = typing.get_args(hint)
        return kind in (int, float) and isinstance(others[0], Uniform)
    return typing.get_origin(hint) is Literal


def _suggest(trial: "optuna.Trial", name: str, hint: object) -> object:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return trial.suggest_categorical(name, arguments)
    kind, interval, *_ = arguments
    suggest = trial.suggest_int if kind is int else trial.suggest_float
    return suggest(name, interval.low, interval.high, log=isinstance(interval, LogUniform))


def run(
    recipe: Recipe,
    trials: int,
    workdir: Path,
    *,
    storage: str | None = None,
    data_dir: str | None = None,
    devices: int | None = None,
) -> "optuna.Study":
    """Runs trials in ``workdir/trial-N`` until ``trials`` are finished or run in other workers.

    Workers are processes that call this function with the same storage and directory. A trial whose
    worker was lost is continued from its checkpoint by the next worker that is free.

    Args:
      storage: URL of a database; None: the file ``sweep.log``.

    Raises:
      UserError: before anything is written, for what any trial would reject. A trial that raises
        another error is marked as failed and does not count.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values = recipe.suggest(optuna.create_study(sampler=_sampler(0)).ask())
    with _naming(values):
        example = recipe(values)
        info = datasets.describe(example.data.name, data_dir)
        example.check(info, sharding.make(devices).size)
    workdir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(workdir / "sweep.lock"):
        study = _open(storage, workdir / "sweep.log")
        space = {name: str(hint) for name, hint in recipe.space.items()}
        known = study.user_attrs.get("space", space)
        problem = f"{workdir} holds a sweep of another search space, {known}"
        require(known == space, f"{problem}: use another --workdir")
        study.set_user_attr("space", space)
    while claimed := _claim(study, trials, workdir):
        trial, claim = claimed
        with claim:
            _train(trial, recipe, workdir / f"trial-{trial.number}", data_dir, devices)
    return study


@contextlib.contextmanager
def _naming(values: Mapping[str, object]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"with {values}: {error}") from None


def _sampler(number: int) -> "optuna.samplers.BaseSampler":
    """Returns the sampler of one trial: a single worker repeats its trials, several differ."""
    import optuna

    return optuna.samplers.TPESampler(seed=number)


def _open(storage: str | None, log: Path) -> "optuna.Study":
    import optuna
    from optuna.storages import JournalStorage, journal

    try:
        opened = storage or JournalStorage(journal.JournalFileBackend(str(log)))
        return optuna.create_study(
            storage=opened,
            study_name="sweep",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )
    except Exception as error:  # Databases raise many types.
        raise UserError(f"the storage {storage or log} cannot be opened: {error}") from error


def _claim(
    study: "optuna.Study", trials: int, workdir: Path
) -> tuple["optuna.Trial", filelock.AcquireReturnProxy] | None:
    """Returns a locked trial, one whose worker was lost or a new one; None if all are claimed."""
    import optuna
    from optuna.trial import TrialState

    def lock(number: int) -> filelock.AcquireReturnProxy:
        return filelock.FileLock(workdir / f"trial-{number}.lock", timeout=0).acquire()

    with filelock.FileLock(workdir / "sweep.lock"):
        known = study.get_trials(deepcopy=False)
        for trial in known:
            if trial.state is TrialState.RUNNING:
                # The operating system releases the locks of a process that was killed.
                with contextlib.suppress(filelock.Timeout):
                    claim = lock(trial.number)
                    return optuna.Trial(study, trial._trial_id), claim
        if sum(trial.state is not TrialState.FAIL for trial in known) >= trials:
            return None
        study.sampler = _sampler(len(known))
        trial = study.ask()
        return trial, lock(trial.number)


class _Reports(RunProgress):
    """Reports the error of every evaluation, and ends a trial above the median of the others."""

    def __init__(self, trial: "optuna.Trial"):
        super().__init__(f"trial {trial.number}")
        self._trial = trial
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = {*frozen.intermediate_values}

    def record(self, record: Mapping[str, Any]) -> None:
        if record["split"] != "test":
            super().record(record)
            return
        import optuna

        step, error = record["step"], record["error_percent"]
        if not self.console.is_terminal:
            self.message(f"step {step}/{self.steps}, held-out error {error:.2f} %{self.numbers}")
        if step in self._reported or step == self.steps:
            return
        self._trial.report(error, step)
        if self._trial.should_prune():
            self.message(f"pruned after step {step}")
            raise optuna.TrialPruned


def _train(
    trial: "optuna.Trial",
    recipe: Recipe,
    folder: Path,
    data_dir: str | None,
    devices: int | None,
) -> None:
    """Trains a trial, and tells its error of the last step; 100 % if it diverged."""
    import optuna
    from optuna.trial import TrialState

    values = recipe.suggest(trial)
    try:
        with _naming(values), _Reports(trial) as progress:
            experiment = recipe(values)
            data = dataclasses.replace(experiment.data, test_split=HELD_OUT)
            experiment = dataclasses.replace(experiment, data=data)
            progress.message(", ".join(f"{name} {value}" for name, value in values.items()))
            options = {"data_dir": data_dir, "devices": devices}
            result = train(experiment, SEED, folder, callbacks=[progress], **options)
    except optuna.TrialPruned:
        trial.study.tell(trial, state=TrialState.PRUNED)
        return
    except NonFiniteLoss:
        result = Workdir(folder).result()
    except Interrupted:
        raise
    except Exception:
        trial.study.tell(trial, state=TrialState.FAIL)
        raise
    assert result
    trial.study.tell(trial, result["value"])


def train_winner(
    study: "optuna.Study",
    recipe: Recipe,
    seeds: int,
    workdir: Path,
    *,
    data_dir: str | None = None,
    devices: int | None = None,
) -> Experiment | None:
    """Trains the best trial with fresh seeds in ``workdir/winner-N``.

    Returns None if another worker runs a trial, or trains the winner.
    """
    from optuna.trial import TrialState

    if study.get_trials(states=(TrialState.RUNNING,)):
        return None
    number, values = study.best_trial.number, study.best_params
    best = dataclasses.replace(recipe(values), name=f"winner-{number}")
    fresh = range(SEED + 1, SEED + 1 + seeds)
    watcher = study_lib.StudyTable([best], seeds)
    options = {"data_dir": data_dir, "devices": devices}
    try:
        with filelock.FileLock(workdir / "winner.lock", timeout=0), watcher:
            study_lib.run([best], fresh, workdir, watcher=watcher, **options)
    except filelock.Timeout:
        return None
    return best


def rows(study: "optuna.Study") -> list[Record]:
    """Returns one row per trial, the best first."""
    trials = sorted(study.get_trials(), key=lambda trial: (trial.value is None, trial.value))
    return [
        {
            "trial": trial.number,
            **trial.params,
            "held-out error %": trial.value,
            "state": trial.state.name.lower(),
        }
        for trial in trials
    ]
