"""``resnet-jax sweep``: trials on held-out images, two workers of which one is killed, the winner on fresh seeds."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from resnet_jax.data import datasets
from resnet_jax.training.config import HELD_OUT, Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.train import train

import launched
from test_cli import fails

optuna = pytest.importorskip("optuna")
RECIPES = """
from dataclasses import replace
from typing import Annotated, Literal

from resnet_jax.models import cifar_architecture
from resnet_jax.studies.sweep import LogUniform, Uniform
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Schedule


def searched(rate: Annotated[float, LogUniform(0.01, 1)], pad: Literal[0, 1], warmup: Annotated[int, Uniform(0, 3)], depth=8):
    return Experiment(
        name="searched",
        model=cifar_architecture(depth, input_shape=(8, 8, 1), features=(8, 8, 8)),
        data=Data(name="digits", pad=pad, flip=False, validation_examples=200),
        schedule=Schedule(learning_rate=rate, decay_steps=(16, 20), warmup_steps=warmup),
        steps=24,
        batch_size=64,
        evaluation=Evaluation(every=4, batch_size=100),
        checkpointing=Checkpointing(every=2),
    )

def on_test_images(rate: Annotated[float, LogUniform(0.01, 1)]):
    experiment = searched(rate, 1, 0)
    return replace(experiment, data=replace(experiment.data, validation_examples=0))

def mixed(rate: Annotated[float, LogUniform(0.01, 1)]): return [searched(rate, 1, 0)]
def open_ended(rate: float): return searched(rate, 1, 0)
def fixed(rate=0.1): return searched(rate, 1, 0)
"""


@pytest.fixture
def recipes(tmp_path: Path) -> str:
    (tmp_path / "recipes.py").write_text(RECIPES)
    return f"{tmp_path}/recipes.py"


def test_invalid_sweeps_are_rejected_before_anything_is_written(
    recipes: str, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--workdir", str(tmp_path / "w"), "--data-dir", digits_dir]
    for function, more, message in (
        ("on_test_images", [], "set data.validation_examples above 0: trials are compared on held-out"),
        ("mixed", [], "returned no experiment"),
        ("open_ended", [], "rate has no default; annotate it with a search space"),
        ("fixed", [], "has no parameter with a search space"),
        ("searched", ["--trials", "0"], "--trials must be at least 1"),
        ("searched", ["--seeds", "0"], "--seeds must be at least 1"),
    ):
        assert message in fails(capsys, "sweep", f"{recipes}:{function}", *base, *more)
    assert not (tmp_path / "w").exists()
    assert "cannot be opened" in fails(capsys, "sweep", f"{recipes}:searched", *base, "--storage", "sqlite:///nowhere/x.db")


def test_held_out_split_replaces_the_test_set(tiny: Experiment, digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training; its validation errors become the errors, and test images are not read."""
    data = dataclasses.replace(tiny.data, validation_examples=144)
    both = dataclasses.replace(tiny, data=data)
    expected = train(both, 0, tmp_path / "both", data_dir=digits_dir, devices=1)
    read = datasets.read
    monkeypatch.setattr(datasets, "read", lambda info, split: read(info, split) if split == "train" else pytest.fail(split))
    alone = dataclasses.replace(both, data=dataclasses.replace(data, test_split=HELD_OUT))
    result = train(alone, 0, tmp_path / "alone", data_dir=digits_dir, devices=1)

    def scored(folder: str, split: str) -> list[tuple[int, float]]:
        return [(r["step"], r["error_percent"]) for r in Workdir(tmp_path / folder).records() if r["split"] == split]

    assert scored("alone", "test") == scored("both", "validation") != []
    assert result["state_digest"] == expected["state_digest"]
    assert (result["value"], result["examples"]) == (scored("both", "validation")[-1][1], 144)
    assert result["protocol"] == expected["protocol"] | {"test_split": HELD_OUT, "test_images": 144}


@pytest.mark.slow
def test_two_workers_finish_a_sweep_after_one_is_killed(recipes: str, digits_dir: str, tmp_path: Path) -> None:
    """12 finished trials without a duplicate; a killed one is continued; the winner is trained on 3 fresh seeds."""
    folder = tmp_path / "sweep"
    command = ["sweep", f"{recipes}:searched", "--trials", "12", "--workdir", str(folder), "--data-dir", digits_dir, "--json"]
    killed = launched.Run(launched.begin(command))
    killed.wait_until((folder / "trial-0" / "experiment.json").exists)
    (worker,) = launched.begin(command, stdout=subprocess.PIPE)
    killed.wait_until(lambda: launched.newest(folder / "trial-0") > 0)
    killed.kill()
    out, err = worker.communicate(timeout=900)
    assert worker.returncode == 0, err
    assert "trial 0: continuing after step" in err
    trials = json.loads(out)["trials"]
    assert sorted(trial["trial"] for trial in trials) == list(range(12))
    assert len({(trial["rate"], trial["pad"], trial["warmup"]) for trial in trials}) == 12
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    best, *others = (trial for trial in trials if trial["state"] == "complete")
    for trial in (best, *others):
        result = Workdir(folder / f"trial-{trial['trial']}").result()
        assert result
        assert (result["value"], result["examples"], result["seed"]) == (trial["held-out error %"], 200, 0)
        assert trial["held-out error %"] >= best["held-out error %"]
    winner = [Workdir(path) for path in sorted(folder.glob("winner-*/seed-*"))]
    assert [run.path.name for run in winner] == ["seed-1", "seed-2", "seed-3"]
    for run in winner:
        experiment, _ = run.experiment()
        assert (experiment.schedule.learning_rate, experiment.data.test_split) == (best["rate"], "test")
    (row,) = json.loads(out)["winner"]
    assert (row["name"], row["seeds"]) == (f"winner-{best['trial']}", 3)
    assert row["test_error"]["values"] == [result["value"] for run in winner if (result := run.result())]
