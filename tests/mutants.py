"""Small faults in the product, each of which the quick tests that it names must catch: ``make mutants``.

A mutant is a substitution in one file of a copy of the package. Tests run against the copy.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A fault, and the test that must catch it."""

    name: str
    file: str
    """Below resnet_jax/."""
    old: str
    """Occurs once in the file."""
    new: str
    test: str
    """Test file below tests/, and an optional ``-k`` expression behind a space."""


STEP, OPTIMIZER, WIRING = "training/step.py", "training/optimizer.py", "training/test_wiring.py"
MUTANTS = (
    Mutant("label smoothing is skipped for unmixed images", STEP, "        if loss == Loss():", "        if True:", f"{WIRING} loss"),
    Mutant(
        "the loss of the experiment is not passed on",
        "training/sharding.py",
        "        experiment.loss,\n",
        "        type(experiment.loss)(),\n",
        f"{WIRING} loss",
    ),
    Mutant("the dropout key ignores the step", STEP, "fold_in(state.key, 3), state.step)", "fold_in(state.key, 3), 0)", f"{WIRING} drops"),
    Mutant(
        "microbatches share a dropout key",
        STEP,
        "of_part(part, jax.random.fold_in(key, number))",
        "of_part(part, key)",
        f"{WIRING} accumulates",
    ),
    Mutant("mixed targets are dropped", STEP, "Batch(images, labels, targets)", "Batch(images, labels, None)", f"{WIRING} mixed"),
    Mutant("label smoothing is ignored", STEP, "    if loss.smoothing:", "    if False:", f"{WIRING} loss"),
    Mutant(
        "the sum of microbatch gradients is not divided",
        STEP,
        "        return values.sum() / examples,",
        "        return values.mean(),",
        f"{WIRING} accumulates",
    ),
    Mutant("soft labels lose their temperature", STEP, "weight * temperature**2 *", "weight *", "training/test_step.py distilled"),
    Mutant(
        "the teacher receives the student's normalization",
        STEP,
        " + (student.mean - mean) / deviation",
        "",
        "training/test_step.py student",
    ),
    Mutant("EMA is evaluated with running statistics", STEP, "params, _ = state.scored()", "params = state.params", f"{WIRING} mixed"),
    Mutant(
        "the decay mask is inverted", OPTIMIZER, "leaf.ndim - is_stacked(path) > 1", "leaf.ndim - is_stacked(path) <= 1", f"{WIRING} loss"
    ),
    Mutant("the learning rate is one step late", OPTIMIZER, "full(state.step)", "full(state.step - 1)", f"{WIRING} loss"),
    Mutant(
        "the warm-up is one step longer",
        OPTIMIZER,
        "state.step < self.schedule.warmup_steps",
        "state.step <= self.schedule.warmup_steps",
        f"{WIRING} loss",
    ),
    Mutant(
        "BatchNorm's momentum is swapped",
        "models/norms.py",
        "momentum * running + (1 - momentum) * average",
        "(1 - momentum) * running + momentum * average",
        "training/test_step.py",
    ),
    Mutant(
        "option A pads before the channels",
        "models/shortcuts.py",
        "(0, 0), self.channels))",
        "(0, 0), self.channels[::-1]))",
        "models/test_shortcuts.py",
    ),
    Mutant("the bias of a gate has the wrong sign", "models/shortcuts.py", "float(bias)))", "-float(bias)))", "models/test_shortcuts.py"),
    Mutant(
        "the center crop is off by one",
        "data/augment_host.py",
        "round((extent - crop) / 2)",
        "round((extent - crop) / 2 + 1)",
        "evaluation/test_protocols.py",
    ),
    Mutant(
        "the last evaluation batch is dropped",
        "evaluation/exact.py",
        "range(0, len(data), batch_size)",
        "range(0, len(data) - batch_size + 1, batch_size)",
        "evaluation/test_exact.py",
    ),
    Mutant(
        "NaN counts as a right answer", "evaluation/exact.py", "(better >= 1) | non_finite", "(better >= 1)", "evaluation/test_exact.py"
    ),
    Mutant(
        "checksums are not verified",
        "training/checkpoint.py",
        'manifest["files"].items() - _checksums(folder).items()',
        'manifest["files"].keys() - _checksums(folder).keys()',
        "training/test_checkpoint.py",
    ),
    Mutant(
        "every epoch has the same order",
        STEP,
        "jax.random.fold_in(key, epoch)",
        "jax.random.fold_in(key, 0)",
        "training/test_batch_order.py",
    ),
    Mutant(
        "the optimizer starts from other weights",
        "training/fine_tune.py",
        "        opt_state=place(state.opt_state, update.init(params)),\n",
        "",
        "training/test_fine_tune.py averages",
    ),
    Mutant(
        "a schedule of optax is not checked",
        OPTIMIZER,
        "np.isfinite(rates) & (rates >= 0)",
        "np.isfinite(rates)",
        "training/test_optimizer.py unusable",
    ),
    Mutant("clipping is skipped", OPTIMIZER, " if optimizer.clip else ", " if False else ", f"{WIRING} loss"),
    Mutant("augmentation ignores the step", STEP, "fold_in(key, 2), step)", "fold_in(key, 2), 0)", "training/test_step.py"),
)


def run(mutant: Mutant) -> tuple[bool, float]:
    """Returns whether the tests fail on the mutant, and the seconds they take.

    Raises:
      ValueError: if the substitution does not fit the file, or no test runs.
    """
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(ROOT / "resnet_jax", Path(directory) / "resnet_jax", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(directory) / "resnet_jax" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}, must be once.")
        path.write_text(text.replace(mutant.old, mutant.new))
        file, _, expression = mutant.test.partition(" ")
        # -P: the working directory does not come before the copy.
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"tests/{file}"]
        environment = os.environ | {"PYTHONPATH": directory}
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *(["-k", expression] if expression else [])], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    # 1: tests failed. 2 to 5: interrupted, internal error, bad usage, nothing collected.
    if done.returncode > 1:
        raise ValueError(f"{mutant.name}: pytest exited with {done.returncode}.\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1, seconds


def main() -> None:
    """Runs all mutants, or ``--count`` of them from ``--start`` on, cyclically."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=len(MUTANTS))
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    survived = []
    for number in range(arguments.start, arguments.start + arguments.count):
        mutant = MUTANTS[number % len(MUTANTS)]
        caught, seconds = run(mutant)
        print(f"{'caught' if caught else 'SURVIVED':8}  {seconds:5.1f} s  {mutant.name}  ({mutant.test})", flush=True)
        survived += [] if caught else [mutant.name]
    if survived:
        raise SystemExit(f"{len(survived)} mutants survived: {', '.join(survived)}")


if __name__ == "__main__":
    main()
