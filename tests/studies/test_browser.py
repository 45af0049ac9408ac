"""The report page as a browser lays it out, on a desk and on a phone, in light and in dark. Needs Chromium."""

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import experiment, records, write_run
from PIL import Image

from resnet_jax.lab import figures as lab_figures
from resnet_jax.lab import lesions as lesions_lib
from resnet_jax.lab.commands import lesions as lesions_command
from resnet_jax.lab.commands import responses as responses_command
from resnet_jax.lab.responses import Responses
from resnet_jax.studies import findings, report
from resnet_jax.studies.cells import collect
from resnet_jax.studies.comparison import Comparison, Refusal
from resnet_jax.studies.ledger import Entry

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="THE REPORT PAGE WAS NOT LOOKED AT: there is no Chromium here; install one: apt-get install chromium"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DARK = "--blink-settings=preferredColorScheme=0"
DESK, PHONE = 1280, 390
LONG = "full pre-activation, exclusive gating and shortcut-only gating with dropout 0.5 on both, a very long name indeed"
# The page itself has no script; this one goes into a copy, and tells its numbers to the page around it.
MEASURE = """
<script>addEventListener("load", () => {
  const box = (element) => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const root = document.documentElement;
  parent.document.getElementById("told").textContent = JSON.stringify({
    inner: innerWidth, scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight,
    rows: document.querySelectorAll("#results tbody tr").length,
    overflowing: [...document.querySelectorAll("body *")]
      .filter((e) => !e.closest(".wide, pre, svg") && e.getBoundingClientRect().right > root.clientWidth + 1)
      .map((e) => e.outerHTML.slice(0, 80)),
    svgs: [...document.querySelectorAll("svg")].map((svg) => ({
      box: box(svg), label: svg.getAttribute("aria-label"),
      texts: [...svg.querySelectorAll("text")].map((text) => ({ box: box(text), text: text.textContent })),
    })),
  });
});</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families of two depths, a seed that diverged, one unfinished, one cell of a very long name, published numbers."""
    base = tmp_path_factory.mktemp("report")
    cells = [
        ("plain-20", 20, True, (9.1, 9.3, 9.0)),
        ("plain-56", 56, True, (13.2, 100.0, 13.4)),
        ("resnet-20", 20, False, (8.7, 8.8, 8.6)),
        ("resnet-56", 56, False, (6.9, 7.05, None)),
        (LONG, 110, False, (0.4, 0.5)),
    ]
    for name, depth, plain, values in cells:
        made = experiment(name, depth, plain=plain)
        for seed, value in enumerate(values):
            diverged = {"diverged_at_step": 9000} if value == 100 else {}
            until = 9000 if diverged or value is None else None
            found = records(64_000, 4.0, value or 7.0, every=500, seed=seed, until=until)
            write_run(base / f"{name[:12]}-{depth}" / f"seed-{seed}", made, seed, value, records=found, **diverged)
    found = collect([base])
    by_name = {cell.name: cell for cell in found}
    fields: dict[str, Any] = {
        "paper": "made-up",
        "table": "Table 6",
        "metric": "top1_error",
        "mark": "V:S1",
        "statistic": "single",
        "network": {"name": "cifar_resnet20"},
        "study": "experiments/he2015_cifar10.py:table6",
    }
    entries = [
        Entry(row=row, value=value, protocol={}, **fields)
        for row, value in (("ResNet-20", 8.75), ("ResNet-56", 6.97), ("ResNet-110", 6.43))
    ]
    differing = {
        "training_images": (45_000, 50_000),
        "batch_norm_statistics": ("true average", "moving average"),
        "view": ("ten crops", "single 32x32"),
    }
    compared = (
        Comparison(entries[0], ours=((by_name["resnet-20"], by_name["resnet-20"].error),)),
        Comparison(entries[1], refused=(Refusal(by_name["resnet-56"], differing),)),
        Comparison(entries[2]),
    )
    study = {
        "command": "resnet-jax study experiments/he2015_cifar10.py:figure6 --seeds 3 --data digits --steps 2000 --workdir runs/a-folder",
        "cells": [*by_name, "resnet-1202"],
        "reduced": "At reduced scale: digits in place of cifar10, 2,000 steps in place of 64,000. Not comparable with the paper's numbers.",
    }
    look_inside(base / "resnet-20-20" / "seed-0")
    report.write(found, base / "report.html", study=study, comparisons=compared)
    return base / "report.html"


def look_inside(run: Path) -> None:
    """What the laboratory finds, of two networks: made up."""
    drawn = np.random.default_rng(0)
    lesioned = {}
    for number, name in enumerate(("resnet-20/seed-0", "plain-20/seed-0")):
        planned = lesions_lib.plan([range(3), range(3, 4), range(4, 6)], draws=3)
        lesioned[name] = [(lesion, float(8 + 40 * number + 10 * len(lesion.deleted) * drawn.random())) for lesion in planned]
    seconds = dict.fromkeys(lesioned, 12.5)
    findings.write(lesions_command.described(lesioned, seconds, [1000, 1000]), "", lambda: lab_figures.lesions(lesioned), run / "lab")
    responses = {
        name: Responses(tuple(f"unit{layer}" for layer in range(19)), *(drawn.uniform(0.1, 2, size) for size in (19, 9, 9, 9)))
        for name in lesioned
    }
    findings.write(responses_command.described(responses, [1000, 1000]), "", lambda: lab_figures.responses(responses), run / "lab")


def framed(page: Path, folder: Path, width: int, height: int) -> Path:
    """A page around a copy of the page: Chromium makes no window narrower than 500 pixels, but a frame."""
    copy = page.read_text().replace("</body>", f"{MEASURE}</body>")
    around = folder / "around.html"
    around.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="told" hidden></pre>'
        f'<iframe style="border:0;display:block;width:{width}px;height:{height}px" srcdoc="{html.escape(copy)}"></iframe>'
    )
    return around


def browse(around: Path, *flags: str, width: int, height: int) -> str:
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={around.parent / 'profile'}", f"--window-size={width},{height}", *flags, around.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module", params=[DESK, PHONE])
def measured(request: pytest.FixtureRequest, page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    around = framed(page, tmp_path_factory.mktemp("measured"), request.param, 900)
    dom = browse(around, "--virtual-time-budget=2000", "--dump-dom", width=request.param, height=900)
    told = re.search(r'<pre id="told"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    assert told
    return json.loads(html.unescape(told[1])) | {"asked": request.param}


def test_the_page_itself_never_scrolls_sideways(measured: dict[str, Any]) -> None:
    assert measured["inner"] == measured["asked"]
    assert measured["overflowing"] == []
    assert measured["scroll"] <= measured["client"]


def test_the_headline_table_has_its_rows(measured: dict[str, Any]) -> None:
    assert measured["rows"] == 5 + 1, "five cells, and one that the study has and nobody ran"


def test_figures_have_a_size_and_hold_their_text(measured: dict[str, Any]) -> None:
    assert len(measured["svgs"]) == 1 + 2 + 2, "errors; plain and residual networks, the long name among them by its depth; the laboratory"
    for svg in measured["svgs"]:
        left, top, right, bottom = svg["box"]
        assert right - left > 200
        assert bottom - top > 100
        assert len(svg["texts"]) > 5
        for text in svg["texts"]:
            assert left - 1 <= text["box"][0] <= text["box"][2] <= right + 1, text
            assert top - 1 <= text["box"][1] <= text["box"][3] <= bottom + 1, text
            assert text["box"][3] - text["box"][1] >= 9, "pixels: what a phone can show"


def test_texts_of_a_figure_do_not_lie_on_each_other(measured: dict[str, Any]) -> None:
    for svg in measured["svgs"]:
        for one, other in itertools.combinations(svg["texts"], 2):
            (l1, t1, r1, b1), (l2, t2, r2, b2) = one["box"], other["box"]
            shared = max(0, min(r1, r2) - max(l1, l2)) * max(0, min(b1, b2) - max(t1, t2))
            smaller = min((r1 - l1) * (b1 - t1), (r2 - l2) * (b2 - t2))
            assert shared <= 0.15 * smaller, (svg["label"], one["text"], other["text"])


@pytest.mark.parametrize(
    ("flags", "width", "paper"), [((), DESK, (255, 255, 255)), ((DARK,), DESK, (20, 23, 26)), ((DARK,), PHONE, (20, 23, 26))]
)
def test_it_can_be_seen_in_light_and_in_dark(
    flags: tuple[str, ...], width: int, paper: tuple[int, int, int], page: Path, tmp_path: Path
) -> None:
    shot = tmp_path / "shot.png"
    browse(framed(page, tmp_path, width, 1600), *flags, "--hide-scrollbars", f"--screenshot={shot}", width=width, height=1600)
    with Image.open(shot) as opened:
        image = opened.convert("RGB").crop((0, 0, width, 1500))
    colours = {colour: count for count, colour in image.getcolors(1 << 24) or []}
    assert image.getpixel((2, 2)) == paper
    assert colours[paper] == max(colours.values())
    assert len(colours) > 50, "letters have edges, figures colours"
    # Ink at the other end of the scale from the paper.
    brightness = [sum(colour) / 3 for colour in colours]
    assert max(brightness) - min(brightness) > 180
