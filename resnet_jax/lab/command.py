"""``resnet-jax lab``: what trained networks do inside. Each command prints tables, and writes data, a figure and a part of the report."""

from collections.abc import Callable, Sequence

from resnet_jax import options as options_lib


def _command(module: str, doc: str) -> Callable[[Sequence[str]], None]:
    return options_lib.later(f"resnet_jax.lab.commands.{module}", doc)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "responses": _command("responses", "Strength of layers and branches, Figure 7: resnet-jax lab responses RUN [RUN ...]"),
    "lesions": _command("lesions", "Units deleted and exchanged in a trained network: resnet-jax lab lesions RUN [PLAIN_TWIN]"),
    "paths": _command("paths", "Lengths of paths, and which carry the gradient: resnet-jax lab paths RUN [RUN ...]"),
    "identity": _command("identity", "How far units are from the identity, and what that leaves to branches: resnet-jax lab identity RUN"),
    "landscape": _command("landscape", "Loss around a trained network, filter-normalised: resnet-jax lab landscape RUN [PLAIN_TWIN]"),
    "depth": _command("depth", "Errors against depth, and where learning stops: resnet-jax lab depth RUNS"),
}


def run(arguments: Sequence[str]) -> None:
    """Dispatches to a command of the laboratory."""
    options_lib.dispatch("lab", COMMANDS, arguments)
