"""Tables of committed results in a Markdown file, so that no number of the README is typed."""

import re
from pathlib import Path
from typing import Any

from resnet_jax import tables
from resnet_jax.errors import UserError, nearest
from resnet_jax.studies import cells, committed, findings

_BEGIN, _END = "<!-- results ", "<!-- end -->"
_BLOCK = re.compile(rf"({_BEGIN}(?P<file>\S+) -->\n)(?:(?!{_BEGIN}).)*?{_END}", re.DOTALL)


def fill(path: Path) -> int:
    """Rewrites every block ``<!-- results FILE.json --> ... <!-- end -->``; FILE is relative to the Markdown file.

    Returns:
      Number of blocks that changed.

    Raises:
      UserError: for an open block, or a file of results that is missing or of another kind.
    """
    after, changed = filled(path.read_text(), path.parent)
    if changed:
        path.write_text(after)
    return changed


def filled(text: str, base: Path) -> tuple[str, int]:
    """Returns the text with its blocks filled from files below ``base``, and the number of changed blocks; see ``fill``."""
    if open_block := re.search(rf"{_BEGIN}.*", _BLOCK.sub("", text)):
        raise UserError(f"'{open_block[0]}' is not closed: write '{_END}' after it")
    changed = 0

    def replace(block: re.Match[str]) -> str:
        nonlocal changed
        new = f"{block[1]}{table(base / block['file'], block['file'])}{_END}"
        changed += new != block[0]
        return new

    return _BLOCK.sub(replace, text), changed


def table(path: Path, link: str) -> str:
    """Returns the Markdown table of a file of results, with its command, environment and link."""
    if not path.is_file():
        raise UserError(f"there is no file {path}{nearest(str(path), map(str, path.parent.glob('*.json')))}")
    text = committed.read_object(path)
    if text.get("kind") == "study":
        rendered, environments = cells.tables(cells.collect([path]))[0], committed.read(path)
    elif text.get("kind") == findings.KIND:
        rendered, environments = findings.table(text["tables"][0]), [text | {"device": text["devices"]}]
    else:
        raise UserError(f"{path} holds results of kind {text.get('kind')!r}; give a study or a {findings.KIND}")
    source = f"`{text['command']}`; {_environment(environments)}; {text['date']}; [data]({link}). {text.get('reduced', '')}".rstrip()
    return "\n".join([*tables.markdown(rendered), "", source]) + "\n"


def _environment(results: list[dict[str, Any]]) -> str:
    """Returns devices, jax versions and commits, all of them where they differ."""
    devices = [f"{r['device']['count']} x {r['device']['kind']}, {r['device']['cores']} cores" for r in results]
    commits = ["no checkout" if r["commit"] is None else re.sub(r"^(\w{7})\w*", r"commit \1", r["commit"]) for r in results]
    return "; ".join(" and ".join(dict.fromkeys(values)) for values in (devices, [f"jax {r['versions']['jax']}" for r in results], commits))
