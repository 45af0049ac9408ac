"""The command line: ``resnet-jax COMMAND`` calls a function, whose parameters are its options.

A command is imported when it is called: ``resnet-jax --help`` needs neither JAX nor Flax.
"""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence

from resnet_jax.errors import CommandError, NeverMet, UserError, nearest, require, users_line

# MODULE:FUNCTION in this package, and the line in the list of commands.
COMMANDS = {
    "train": ("train:train", "Train an experiment, or continue it."),
    "evaluate": ("train:evaluate", "Score a run, or imported weights."),
    "study": ("study:study", "Compare experiments over seeds."),
    "report": ("study:report", "Tables of runs, and a page; a paper's numbers beside ours."),
    "sweep": ("study:sweep", "Search hyperparameters on held-out training images."),
    "list": ("info:list_", "List networks and recipes."),
    "summary": ("info:summary", "Count a network without building it."),
    "doctor": ("info:doctor", "List versions, devices, data sets, and problems with remedies."),
    "prepare": ("data:prepare", "Write a data set into the data directory."),
    "data check": ("data:check", "Print classes, sizes, formats and problems of a data set."),
    "data preview": ("data:preview", "Draw the images of a training step."),
    "weights import": ("weights:import_", "Convert weights of other code bases."),
    "weights export": ("weights:export", "Write weights in the names of another code base."),
    "weights push": ("weights:push", "Upload a folder of 'weights export' to the Hub."),
    "weights show": ("weights:show_", "Print the card of weights and the origin of tensors."),
    "analyze responses": ("analyze:responses", "Strength of layers (He et al. 2015)."),
    "analyze lesions": ("analyze:lesions", "Deleted blocks (Veit et al. 2016)."),
    "analyze paths": ("analyze:paths", "Lengths and gradients of paths (Veit et al. 2016)."),
    "analyze identity": ("analyze:identity", "Distance of blocks from the identity."),
    "analyze landscape": ("analyze:landscape", "Loss landscape (Li et al. 2018)."),
    "analyze depth": ("analyze:depth", "Error against depth (He et al. 2015)."),
    "export": ("export:export", "Write a network as StableHLO or ONNX, to use it elsewhere."),
    "plan": ("plan:plan", "Compile a step for target hardware that is not attached."),
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
        return
    except BaseException as error:
        code, message = _outcome(error)
    if message:
        print(f"resnet-jax: {message}", file=sys.stderr)
    if "resnet_jax.distributed" in sys.modules:
        sys.modules["resnet_jax.distributed"].leave(code)
    raise SystemExit(code)


def _run(words: list[str]) -> None:
    called = next((n for n in (" ".join(words[:2]), *words[:1]) if n in COMMANDS), None)
    if called is None:
        _check_command(words)
    if os.path.expanduser("~") == "~":
        raise UserError("the home directory is unknown; set HOME")
    from tyro.extras import SubcommandApp

    registry = None
    apps = {group: SubcommandApp() for group in ("", *_GROUPS)}
    for name, (reference, text) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if name == called:
            # A KeyboardInterrupt inside the import of jaxlib ends in a crash.
            handler = signal.signal(signal.SIGINT, _stop)
            from resnet_jax.cli import options

            signal.signal(signal.SIGINT, handler)
            command, registry = options.bind(name, reference, words[len(name.split()) :])
            apps[group].command(name=last)(command)
        else:
            apps[group].command(name=last, help=text)(lambda: None)
    for group, text in _GROUPS.items():
        apps[""].command(apps[group], name=group, help=text)
    description = "Residual networks in JAX. COMMAND --help lists the options of a command."
    with contextlib.redirect_stderr(io.StringIO()) as box:
        try:
            call = apps[""].cli(
                prog="resnet-jax",
                description=description,
                args=["--help" if word == "--help-all" else word for word in words],
                registry=registry,
            )
        except SystemExit as error:
            require(not error.code, _sentence(box.getvalue()))
            raise
    print(box.getvalue(), end="", file=sys.stderr)
    call()


def _sentence(box: str) -> str:
    """Returns the text of an error in a box of tyro, without the help below its first rule."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:-1]
    text = "\n".join(line.strip("│| ") for line in lines)
    problem, rest, *_ = re.split(r"\n[─-]{5,}\n", text + "\n─────\n", maxsplit=1)
    near = re.findall(r"^--[\w.-]+", rest, re.MULTILINE) if "Perhaps you meant" in rest else ()
    return " ".join(problem.split()) + f"; did you mean {' or '.join(near)}?" * bool(near)


def _check_command(words: list[str]) -> None:
    """Raises UserError unless the first words are a command, or ask for help."""
    group = [name for name in COMMANDS if words and name.startswith(f"{words[0]} ")]
    names = [word for word in words[: 1 + bool(group)] if not word.startswith("-")]
    if names and (not group or len(names) > 1):
        wrong = " ".join(names)
        raise UserError(f"no command is called {wrong!r}{nearest(wrong, group or COMMANDS)}")
    asks = bool({"-h", "--help", "--help-all"} & {*words})
    require(asks, f"a command is missing: see {' '.join(['resnet-jax', *names])} --help")


def _stop(*_: object) -> None:
    print("resnet-jax: stopped", file=sys.stderr)
    os._exit(130)


def _outcome(error: BaseException) -> tuple[int, str]:
    """Returns the exit code of an error and its message; raises those of this package's code."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        with contextlib.suppress(OSError):  # Python flushes stdout once more, also a closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # The reader, such as `head`, has ended.
        return 141, ""
    line = users_line(error)
    if isinstance(error, ModuleNotFoundError) and not line:
        extra = "sweep" if error.name == "optuna" else "train"
        return 2, f"{error.name} is not installed. Do: pip install 'resnet-jax-lab[{extra}]'"
    if isinstance(error, OSError) and error.filename and not line:
        return 2, f"{error.filename} cannot be written or read ({error.strerror})"
    if line or isinstance(error, OSError | SyntaxError):
        reason = str(error).partition("\n")[0]
        return 2, f"{line}{type(error).__name__}: {reason}"
    if not isinstance(error, Exception):  # SystemExit of tyro or of a command.
        raise error
    from resnet_jax import distributed

    if not distributed.several():
        raise error
    traceback.print_exception(error)
    if distributed.lost(error):
        return NeverMet.exit_code, "another process was lost; run all of them again"
    return 1, ""
