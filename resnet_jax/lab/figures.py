"""The laboratory's figures: vector and PNG, told apart without colour."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.lab.responses import Responses
from resnet_jax.studies import figures

_STROKES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "x")


def responses(found: Mapping[str, Responses], path: Path) -> list[Path]:
    """Figure 7 of He et al. 2015: standard deviations of layer responses in the layers' order (left) and sorted (right).

    Args:
      found: by the name that the legend gives.
      path: of the figure, without its ending.

    Returns:
      The files written: ``.svg`` and ``.png``.
    """
    with figures.style():
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        looks = zip(itertools.cycle(figures.COLOURS), itertools.cycle(_STROKES), itertools.cycle(_MARKS))
        for (name, each), (colour, stroke, mark) in zip(found.items(), looks, strict=False):
            for panel, values in zip(panels, (each.deviation, np.sort(each.deviation)[::-1]), strict=True):
                numbers = np.arange(1, len(values) + 1)
                panel.plot(numbers, values, stroke, color=colour, marker=mark, markersize=2.5, linewidth=1, label=name)
        for panel, below in zip(panels, ("layer, from the image", "layer, sorted by magnitude"), strict=True):
            panel.set_xlabel(below)
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="y", color=figures.GREY, alpha=0.25, linewidth=0.6)
        panels[0].set_ylabel("standard deviation of the response")
        panels[1].legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
        for file in written:
            figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written
