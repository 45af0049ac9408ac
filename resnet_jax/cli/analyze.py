"""``resnet-jax analyze``: the analyses of trained networks."""

from collections.abc import Mapping, Sequence

from resnet_jax.cli import options as options_lib
from resnet_jax.models import components

COMMANDS: Mapping[str, str] = {
    "responses": "Strength of layers and branches (He et al. 2015, Figure 7): RUN [RUN ...]",
    "lesions": "Error after blocks are deleted or exchanged (Veit et al. 2016): RUN [PLAIN_TWIN]",
    "paths": "Path lengths, and the gradient that paths carry (Veit et al. 2016): RUN [RUN ...]",
    "identity": "Distance of blocks from the identity (He et al. 2015, Section 3.1): RUN",
    "landscape": "Filter-normalized loss landscape (Li et al. 2018): RUN [PLAIN_TWIN]",
    "depth": "Error against depth (He et al. 2015, Figure 1): RUNS",
}


def run(arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze ANALYSIS``."""
    options_lib.dispatch(
        "analyze", {name: _command(name, doc) for name, doc in COMMANDS.items()}, arguments
    )


def _command(name: str, doc: str) -> options_lib.Command:
    def run(arguments: Sequence[str]) -> None:
        analysis = components.load_module(f"resnet_jax.analysis.{name}")
        analysis.run(options_lib.parse(f"analyze {name}", analysis.Options, arguments), arguments)

    run.__doc__ = doc
    return run
