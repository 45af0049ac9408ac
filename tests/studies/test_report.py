"""The report page: self-contained, complete, and escaped."""

import html.parser
import json
import re
from pathlib import Path

from test_study import write_run

from resnet_jax.studies import report


class Page(html.parser.HTMLParser):
    """Collects tags, what they load, and the table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def write(tmp_path: Path) -> tuple[str, Page]:
    folders = [write_run(tmp_path / f"{name}-{seed}", name, seed, width=10, value=12.5 + seed) for name in ("<plain>",) for seed in (0, 1)]
    for folder in folders:
        records = [{"step": step, "split": split, "error_percent": 90.0 / step} for step in (1, 2, 3) for split in ("train", "test")]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"cut off')
    folders.append(write_run(tmp_path / "open", "open", 0, width=11, value=None))
    report.write(folders, tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page()
    page.feed(text)
    return text, page


def test_one_page_with_table_curves_and_runs(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    words = " ".join(" ".join(page.text).split())
    assert "13.00 ± 0.71" in words  # of 12.5 and 13.5: sqrt(2 x 0.25 / 1)
    assert "not finished, step 0 of 5" in words
    assert page.tags.count("svg") == 1
    assert page.tags.count("details") == 3
    # A line a run and panel: two runs of three points each, training and test; and the one in the legend.
    assert len(re.findall(r'<g id="line2d_\d+">\s*<path d="M [\d.]+ [\d.]+ \s*L [\d.]+ [\d.]+ \s*L [\d.]+ [\d.]+ \s*"', text)) == 4 + 1


def test_nothing_is_loaded_from_elsewhere_and_names_are_escaped(tmp_path: Path) -> None:
    text, page = write(tmp_path)
    assert page.loads == []
    assert "script" not in page.tags
    assert "url(http" not in text
    assert "<plain>" not in text
    assert "&lt;plain&gt;" in text
