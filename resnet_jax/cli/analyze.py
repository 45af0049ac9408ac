"""``resnet-jax analyze``: runs an analysis, prints it and writes it beside the first run."""

import importlib
import shlex
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from resnet_jax.cli.options import Words
from resnet_jax.errors import UserError
from resnet_jax.studies import report, results
from resnet_jax.terminal import show


def __getattr__(name: str) -> Callable[..., None]:
    """Returns the command of the module of ``resnet_jax.analysis`` with this name."""
    if name.startswith("_"):
        raise AttributeError(name)
    analysis = importlib.import_module(f"resnet_jax.analysis.{name}")

    def analyze(options: Any, words: Words = ()) -> None:
        if not options.sources:
            raise UserError(f"analyze {name} needs at least one run directory or file of weights.")
        finding, draw = analysis.run(options)
        line = shlex.join(["resnet-jax", "analyze", name, *words])
        directories = (source for source in options.sources if source.is_dir())
        runs = (run / report.FINDINGS for folder in directories for run in results.find(folder))
        folder = options.to or next(runs, None)
        parts = [*finding.tables]
        try:  # The numbers are also printed where they cannot be written.
            if folder:
                files = finding.write(line, draw, folder)
                endings = ", ".join(file.suffix for file in files)
                parts += finding.caption, f"{files[0].with_suffix('')}{endings}"
        finally:
            show(options.json, finding.plain(line), *parts)

    analyze.__doc__ = analysis.Options.__doc__
    analyze.__annotations__["options"] = Annotated[analysis.Options, tyro.conf.arg(name="")]
    return analyze
