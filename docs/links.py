"""Dead relative links of Markdown files and of the built site."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if values.get(name)]


def _relative(links: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yields a link, its path and its anchor, for links without a scheme or host."""
    for link in dict.fromkeys(links):
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            yield link, unquote(parts.path), unquote(parts.fragment)


@cache
def _page(file: Path) -> _Page:
    return _Page(file.read_text())


def dead_in_site(folder: Path) -> list[str]:
    """Returns the links of built pages to files or anchors that do not exist."""
    dead = []
    # Themes put templates into _static.
    for file in sorted(set(folder.rglob("*.html")) - set(folder.glob("_static/**/*"))):
        for link, path, anchor in _relative(_page(file).links):
            target = (file.parent / path).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            exists = target.is_file()
            if exists and anchor and target.suffix == ".html":
                exists = anchor in _page(target).anchors
            if not exists:
                dead.append(f"{file.relative_to(folder)}: {link}")
    return dead


def _headings(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_in_markdown(files: Iterable[Path], generated: str = "_generated") -> list[str]:
    """Returns the links to files or headings that do not exist; a build checks generated pages."""
    dead = []
    for file in files:
        text = re.sub(r"^```\w+\n.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link, path, anchor in _relative(re.findall(r"\]\(<?([^)\s>]+)>?\)", text)):
            target = file.parent / path if path else file
            if generated in target.parts:
                continue
            exists = target.exists()
            if exists and anchor and target.suffix == ".md":
                exists = anchor in _headings(target.read_text())
            if not exists:
                dead.append(f"{file}: {link}")
    return dead
