"""Training curves as inline SVG."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.training.workdir import Record

# Okabe and Ito's colours: told apart with any colour vision, and on light and dark paper. The lines also differ in their dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
# matplotlib knows no 'currentColor'; this one stands for it until the SVG is written.
_INK = "#010203"


def training_curves(cells: Mapping[str, Sequence[Sequence[Record]]]) -> str:
    """Error against steps in the manner of He et al. 2015, Figure 1: training error left, test error right.

    Args:
      cells: name to the records of each of its runs.

    Returns:
      An ``<svg>`` element that takes its ink from the page.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "resnet_jax",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": _INK,
    }
    style |= {"text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for panel, split, title in zip(
            panels, ("train", "test"), ("training error (of the batches trained on)", "test error"), strict=True
        ):
            for (name, runs), look in zip(cells.items(), itertools.cycle(_looks()), strict=False):
                for index, records in enumerate(runs):
                    points = [(r["step"], r["error_percent"]) for r in records if r["split"] == split]
                    if points:
                        label = name if index == 0 else None
                        panel.plot(
                            *zip(*points, strict=True),
                            color=look[0],
                            linestyle=look[1],
                            linewidth=1.6,
                            alpha=0.9,
                            marker="." if len(points) < 5 else "",
                            label=label,
                        )
            panel.set_title(title, fontsize=10)
            panel.set_xlabel("step")
            panel.set_ylim(0, 100)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(axis="y", color="#808080", alpha=0.3, linewidth=0.6)
        panels[0].set_ylabel("error (%)")
        panels[1].legend(frameon=False, handlelength=3)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _looks() -> list[tuple[str, str]]:
    return [(colour, DASHES[index % len(DASHES)]) for index, colour in enumerate(COLOURS)]
