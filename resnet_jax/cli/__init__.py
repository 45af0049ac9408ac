"""The command line, ``resnet-jax COMMAND``.

A command is a function, whose parameters are its options (tyro). It is imported when it is called:
``resnet-jax --help`` needs neither JAX nor Flax.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tyro.extras import SubcommandApp

from resnet_jax.errors import CommandError, NeverMet

# MODULE:FUNCTION, and the line in the list of commands.
COMMANDS = {
    "train": ("cli.train:train", "Train an experiment, or continue it."),
    "evaluate": ("cli.train:evaluate", "Score a run, or imported weights."),
    "study": ("cli.study:study", "Compare experiments over seeds."),
    "report": ("cli.study:report", "Tables of runs, and a page; a paper's numbers beside ours."),
    "list": ("cli.info:list_", "List networks and recipes."),
    "summary": ("cli.info:summary", "Count a network without building it."),
    "doctor": ("cli.info:doctor", "List versions, devices, data sets, and problems with remedies."),
    "prepare": ("cli.data:prepare", "Write a data set into the data directory."),
    "data preview": ("cli.data:preview", "Draw the images of a training step."),
    "weights import": ("cli.weights:import_", "Convert weights of torchvision, timm or akamaster."),
    "weights export": ("cli.weights:export", "Write weights in the names of another code base."),
    "weights show": ("cli.weights:show_", "Print the card of weights and the origin of tensors."),
    "analyze responses": ("cli.analyze:responses", "Strength of layers (He et al. 2015)."),
    "analyze lesions": ("cli.analyze:lesions", "Deleted blocks (Veit et al. 2016)."),
    "analyze paths": ("cli.analyze:paths", "Lengths and gradients of paths (Veit et al. 2016)."),
    "analyze identity": ("cli.analyze:identity", "Distance of blocks from the identity."),
    "analyze landscape": ("cli.analyze:landscape", "Loss landscape (Li et al. 2018)."),
    "analyze depth": ("cli.analyze:depth", "Error against depth (He et al. 2015)."),
    "plan": ("cli.plan:plan", "Compile a step for target hardware that is not attached."),
}
_GROUPS = {
    "data": "Look at data sets.",
    "weights": "Import, export and show weights.",
    "analyze": "Analyze trained networks.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; launch/README.md lists the exit codes."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every save.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "resnet_jax"))
    try:
        try:
            _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # The reader, such as `head`, has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(141)
    except CommandError as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        print("resnet-jax: stopped", file=sys.stderr)
        _leave(130)
    except Exception as error:
        from resnet_jax import distributed

        if not distributed.several():
            raise
        traceback.print_exc()
        if not distributed.lost(error):
            _leave(1)
        print("resnet-jax: another process was lost; run all of them again", file=sys.stderr)
        _leave(NeverMet.exit_code)


def _run(words: list[str]) -> None:
    called = next((n for n in (" ".join(words[:2]), *words[:1]) if n in COMMANDS), None)
    registry = None
    apps = {group: SubcommandApp() for group in ("", *_GROUPS)}
    for name, (reference, text) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if name == called:
            from resnet_jax.cli import options

            rest = words[len(name.split()) :]
            command, registry = options.bind(f"resnet_jax.{reference}", rest)
            apps[group].command(name=last)(command)
        else:
            apps[group].command(name=last, help=text)(lambda: None)
    for group, text in _GROUPS.items():
        apps[""].command(apps[group], name=group, help=text)
    apps[""].cli(
        prog="resnet-jax",
        description="Residual networks in JAX. COMMAND --help lists the options of a command.",
        args=["--help" if word == "--help-all" else word for word in words],
        registry=registry,
    )


def _leave(code: int) -> NoReturn:
    if distributed := sys.modules.get("resnet_jax.distributed"):
        distributed.leave(code)
    raise SystemExit(code)
