"""The laboratory's figures: told apart without colour. All are made within ``studies.figures.style``."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.lab.lesions import Lesion
from resnet_jax.lab.responses import Responses
from resnet_jax.studies import figures

# Of a page of two columns, in inches.
_WIDTH, _HEIGHT = 7.2, 3.0
_STROKES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "x")


def responses(found: Mapping[str, Responses]) -> Figure:
    """Figure 7 of He et al. 2015: standard deviations of layer responses in the layers' order (left) and sorted (right).

    Args:
      found: by the name that the legend gives.
    """
    figure, panels = _panels("layer, from the image", "layer, sorted by magnitude", sharey=True)
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        for panel, values in zip(panels, (each.deviation, np.sort(each.deviation)[::-1]), strict=True):
            panel.plot(np.arange(1, len(values) + 1), values, label=name, **look)
    for panel in panels:
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("standard deviation of the response")
    panels[1].legend(frameon=False)
    return figure


def lesions(found: Mapping[str, Sequence[tuple[Lesion, float]]]) -> Figure:
    """Errors after lesions: each unit deleted alone, several at once (Veit et al. 2016, Figure 5a), pairs exchanged (Figure 5b).

    Args:
      found: by the name that the legend gives, lesions and their errors in percent.
    """
    figure, panels = _panels("unit deleted", "units deleted at once", "order of the units, Kendall's tau", sharey=True)
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        one = [(lesion.deleted[0], error) for lesion, error in each if lesion.kind == "one"]
        panels[0].plot(*np.transpose(one), label=name, **look)
        panels[0].axhline(next(error for lesion, error in each if lesion.kind == "none"), color=look["color"], linewidth=0.6)
        counts = sorted({len(lesion.deleted) for lesion, _ in each if lesion.kind == "several"})
        spread = [[error for lesion, error in each if lesion.kind == "several" and len(lesion.deleted) == count] for count in counts]
        panels[1].plot(counts, [np.median(errors) for errors in spread], **look)
        panels[1].fill_between(counts, [min(e) for e in spread], [max(e) for e in spread], color=look["color"], alpha=0.2, linewidth=0)
        exchanged = [(lesion.tau, error) for lesion, error in each if lesion.kind == "exchanged"]
        if exchanged:
            panels[2].plot(*np.transpose(exchanged), **look | {"linestyle": "none"}, alpha=0.7)
    panels[0].set_ylabel("error (%)")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    panels[2].invert_xaxis()
    for panel in panels[:2]:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panels(*below: str, height: float = _HEIGHT, **given: Any) -> tuple[Figure, list[Axes]]:
    """A row of panels, by what stands below each."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = list(figure.subplots(1, len(below), squeeze=False, **given)[0])
    for panel, label in zip(panels, below, strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="y", color=figures.GREY, alpha=0.25, linewidth=0.6)
    return figure, panels


def _looks() -> Iterator[Any]:
    """Of lines, one after another."""
    names = ("color", "linestyle", "marker")
    for look in zip(itertools.cycle(figures.COLOURS), itertools.cycle(_STROKES), itertools.cycle(_MARKS), strict=False):
        yield dict(zip(names, look, strict=True)) | {"markersize": 2.5, "linewidth": 1}
