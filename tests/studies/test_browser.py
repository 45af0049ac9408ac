"""The report page as Chromium lays it out: desktop and phone, light and dark."""

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from resnet_jax.studies import report
from resnet_jax.studies.comparison import Comparison
from resnet_jax.studies.report import Finding
from resnet_jax.studies.results import collect
from resnet_jax.terminal import Table
from synthetic_runs import entry, experiment, records, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="the report page was not tested: install Chromium, apt-get install chromium"),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--hide-scrollbars")
OFFLINE = ("--disable-background-networking", "--disable-component-update")
DESKTOP, PHONE = 1200, 400
LONG = "full pre-activation, exclusive gating and shortcut-only gating with dropout 0.5 on both, a very long name indeed"
# The page has no script; this one goes into a copy and hands its numbers to the surrounding page.
MEASURE = """
<script>addEventListener("load", () => {
  const box = (element) => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const root = document.documentElement;
  parent.document.getElementById("measured").textContent = JSON.stringify({
    inner: innerWidth, scroll: root.scrollWidth, client: root.clientWidth,
    rows: document.querySelectorAll("#results tbody tr").length,
    overflowing: [...document.querySelectorAll("body *")]
      .filter((e) => !e.closest(".wide, pre, svg") && e.getBoundingClientRect().right > root.clientWidth + 1)
      .map((e) => e.outerHTML.slice(0, 80)),
    marks: [...document.querySelectorAll(".errors svg [id^='errors-axes'] > [id*='line2d'] use")].map(box),
    image: document.querySelector(".finding img").naturalWidth,
    svgs: [...document.querySelectorAll("svg")].map((svg) => ({
      box: box(svg), texts: [...svg.querySelectorAll("text")].map((text) => ({ box: box(text), text: text.textContent })),
    })),
    details: [...document.querySelectorAll("summary")].map((summary) => {
      const before = summary.parentElement.open;
      summary.focus({ preventScroll: true });
      summary.click();
      const changed = summary.parentElement.open !== before;
      summary.click();
      return [document.activeElement === summary, changed];
    }),
  });
});</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families of two depths, a diverged and an unfinished seed, a very long name, published numbers, a finding."""
    base = tmp_path_factory.mktemp("report")
    networks = {"plain-20": (9.1, 9.3), "plain-56": (13.2, 100.0), "resnet-20": (8.7, 8.8), "resnet-56": (6.9, None), LONG: (0.4, 0.5)}
    for depth, (name, values) in zip((20, 56, 20, 56, 110), networks.items(), strict=True):
        recipe = experiment(name, depth, plain=name.startswith("plain"))
        for seed, value in enumerate(values):
            measured = records(64_000, 4.0, value or 7.0, every=500, seed=seed)
            diverged_at_step = 9000 if value == 100 else None
            write_run(base / name[:12] / f"seed-{seed}", recipe, seed, value, records=measured, diverged_at_step=diverged_at_step)
    variants = collect([base])
    ours = next(variant for variant in variants if variant.name == "resnet-20")
    differing = {"training_images": (45_000, 50_000), "batch_norm_statistics": ("true average", "moving average")}
    compared = (Comparison(entry(), ours=((ours, ours.error),)), Comparison(entry(), mismatches=((ours, differing),)))
    study = {
        "command": "resnet-jax study experiments/he2015_cifar10.py:figure6 --seeds 3 --data digits --steps 2000 --workdir runs/a-folder",
        "variants": [variant.name for variant in variants] + ["resnet-1202"],
        "reduced": "At reduced scale: digits in place of cifar10, 2,000 steps in place of 64,000. Not comparable with the paper's numbers.",
    }
    figure = Figure(figsize=(6, 3), layout="constrained")
    figure.add_subplot(xlabel="block").plot(range(19))
    table = Table("deletions", ("network", *(f"error of block {number} %" for number in range(16))), (("resnet-20", *range(16)),))
    finding = Finding(name="x", title="Lesions", caption="One block removed.", tables=(table, table), rows=[{"a": 1}])
    finding.write("", lambda: figure, base / "resnet-20" / "seed-0" / report.FINDINGS)
    report.write(variants, base / "report.html", study=study, comparisons=compared)
    return base / "report.html"


def browse(page: Path, folder: Path, *flags: str, width: int, height: int) -> str:
    """Opens a page with a copy of the page in a frame: windows of Chromium have at least 500 pixels."""
    assert BROWSER is not None
    copy = page.read_text().replace("</body>", f"{MEASURE}</body>")
    around = folder / "around.html"
    around.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="measured" hidden></pre>'
        f'<iframe style="border:0;display:block;width:{width}px;height:{height}px" srcdoc="{html.escape(copy)}"></iframe>'
    )
    command = [BROWSER, *FLAGS, *OFFLINE, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", *flags, around.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


def overlap(one: list[float], other: list[float]) -> tuple[float, float]:
    """Width and height in pixels of what two boxes share; negative: their distance."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = one, other
    return min(r1, r2) - max(l1, l2), min(b1, b2) - max(t1, t2)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_page_fits_its_window_and_figures_hold_their_text(width: int, page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--virtual-time-budget=2000", "--dump-dom", width=width, height=900)
    match = re.search(r'<pre id="measured"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    assert match
    measured = json.loads(html.unescape(match[1]))
    assert (measured["inner"], measured["overflowing"]) == (width, [])
    assert measured["scroll"] <= measured["client"]
    assert measured["rows"] == 5 + 1, "five variants, and one without runs"
    assert len(measured["svgs"]) == 1 + 2, "errors, two families"
    assert measured["image"] > 0, "the figure of the finding"
    assert len(measured["details"]) > 5
    assert all(map(all, measured["details"])), "the keyboard reaches and opens them"
    assert len(measured["marks"]) > 10
    for mark, text in itertools.product(measured["marks"], measured["svgs"][0]["texts"]):
        assert min(overlap(mark, text["box"])) < 0, f"a mark touches {text['text']}"
    for svg in measured["svgs"]:
        left, top, right, bottom = svg["box"]
        assert (right - left > 200, bottom - top > 100, len(svg["texts"]) > 5) == (True, True, True)
        for text in svg["texts"]:
            l1, t1, r1, b1 = text["box"]
            assert left - 1 <= l1 <= r1 <= right + 1, text
            assert top - 1 <= t1 <= b1 <= bottom + 1, text
            assert b1 - t1 >= 9, "pixels: legible on a phone"
        for one, other in itertools.combinations(svg["texts"], 2):
            assert min(overlap(one["box"], other["box"])) < 1, (one["text"], other["text"])


def test_page_is_legible_in_light_and_dark(page: Path, tmp_path: Path) -> None:
    for flags, paper in (((), (255, 255, 255)), (("--blink-settings=preferredColorScheme=0",), (20, 23, 26))):
        shot = tmp_path / "shot.png"
        browse(page, tmp_path, *flags, f"--screenshot={shot}", width=DESKTOP, height=1600)
        with Image.open(shot) as image:
            colors = {color: count for count, color in image.convert("RGB").crop((0, 0, DESKTOP, 1500)).getcolors(1 << 24) or []}
        assert colors[paper] == max(colors.values())
        assert np.ptp([np.mean(color) for color in colors]) > 180
