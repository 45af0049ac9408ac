"""``resnet-jax train`` and ``resnet-jax evaluate``."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from resnet_jax import distributed
from resnet_jax.cli import options
from resnet_jax.cli.options import (
    AsJson,
    DataDir,
    Fields,
    Loggers,
    Processes,
    Reference,
    Words,
)
from resnet_jax.data import datasets
from resnet_jax.distributed import Joining
from resnet_jax.errors import Positive, Seed, UserError


def train(
    reference: Reference,
    *,
    workdir: Path,
    experiment: Fields,
    seed: Seed = 0,
    data_dir: DataDir = None,
    devices: Positive | None = None,
    fsdp: Positive = 1,
    init_from: Path | None = None,
    new_head: bool = False,
    freeze_trunk: bool = False,
    profile: int = 0,
    logger: Loggers = (),
    as_json: AsJson = False,
    joining: Processes = Joining(),
    words: Words = (),
) -> None:
    """Train an experiment, or continue it. --steps rescales the schedule fields that are not given.

    Every field of the experiment is an option; --help-all lists all of them.

    Args:
      workdir: Run directory. A run in it is continued; another experiment or seed is rejected.
      seed: Seed of initialization, data order and augmentation.
      devices: Devices to use, over all processes; default: all.
      fsdp: Devices that share one copy of the parameters and the optimizer's state.
      init_from: Imported weights, or a run, to fine-tune, with their normalization of images.
      new_head: Initialize the classifier at random, for other classes.
      freeze_trunk: Train only the classifier; see also --optimizer.frozen and --optimizer.rates.
      profile: Steps to trace into WORKDIR/profile.
      logger: tensorboard (default), wandb, mlflow, trackio, csv, or FILE.py:CLASS; may be repeated.
    """
    explicit = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    unscaled = dataclasses.replace(experiment, steps=options.experiment(reference).steps)
    experiment = unscaled.shortened(experiment.steps, explicit)
    # Reported before the slow imports.
    datasets.describe(experiment.data.name, data_dir)
    distributed.connect(joining)
    if init_from is not None:
        from resnet_jax.training import fine_tune

        own = "data.normalization" in explicit
        normalization = experiment.data.normalization if own else "weights"
        experiment = fine_tune.start_from(
            experiment,
            init_from,
            new_head=new_head,
            freeze_trunk=freeze_trunk,
            normalization=normalization,
        )
    elif new_head or freeze_trunk:
        raise UserError("--new-head and --freeze-trunk belong to --init-from FILE")
    from resnet_jax.studies import comparison
    from resnet_jax.terminal import RunProgress, show
    from resnet_jax.training.loggers import DEFAULT, create
    from resnet_jax.training.train import train as train_run

    loggers = [create(name, comparison.published_beside) for name in logger or DEFAULT]
    title = f"{experiment.name}, seed {seed}"
    with RunProgress(title) as progress:
        result = train_run(
            experiment,
            seed,
            workdir,
            callbacks=[progress],
            loggers=loggers,
            data_dir=data_dir,
            devices=devices,
            fsdp=fsdp,
            profile_steps=profile,
        )
    published = "".join(
        f" (published: {entry}, {entry.paper}, {entry.table})"
        for entry in comparison.published_beside(result)
    )
    text = (
        "{title}: test error {value:.2f} %{published} on {examples} images, training error "
        "{training_error_percent:.2f} % ({training_error_of}), {seconds:.0f} s; {file}"
    )
    more = {"title": title, "published": published, "file": workdir / "result.json"}
    show(as_json, result, text.format(**result | more))


def evaluate(
    run: Positional[Path],
    *,
    data: str | None = None,
    split: str | None = None,
    protocol: tuple[str, ...] = (),
    batch_size: Positive = 500,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    joining: Processes = Joining(),
) -> None:
    """Score the newest checkpoint of a run, or imported weights, every example exactly once.

    Args:
      run: Run directory, or weights that 'resnet-jax weights import' wrote.
      data: Data set; default: the one of the training.
      split: Split; default: the test split.
      protocol: Crops of an image: 256/224 (shorter side / central square), 236/224-bicubic,
        ten-crop, multi-scale, or several of them; default: that of the run or the weights.
      batch_size: Images per call; ten crops count as ten images, and larger images as several.
    """
    distributed.connect(joining)
    from resnet_jax.evaluation import protocols
    from resnet_jax.studies import score
    from resnet_jax.terminal import Table, show

    results = score.score(
        run,
        data=data,
        split=split,
        batch_size=batch_size,
        data_dir=data_dir,
        requested=[protocols.parse(text) for text in protocol] or [None],
    )
    first = results[0]
    title = f"{run}" if first["step"] is None else f"{run}, step {first['step']}"
    if len(results) == 1:
        error, examples = first["error_percent"], first["examples"]
        text = f"{title}: error {error:.2f} % on {examples} images of {first['split']}"
        show(as_json, first, text)
        return
    rows = [
        {
            "protocol": one["protocol"]["view"],
            "top-1 error, %": f"{one['error_percent']:.2f}",
            "top-5 error, %": (top5 := one["top5_error_percent"]) and f"{top5:.2f}",
            "images": one["examples"],
            "seconds": one["seconds"],
        }
        for one in results
    ]
    show(as_json, results, Table.from_rows(f"{title}, {first['split']}", rows))
