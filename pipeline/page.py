"""What all our HTML pages share: one file, no scripts, nothing fetched from elsewhere, readable on a phone."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6b7e; --line: #dfe4ea; --page: #fbfcfd; --good: #11734b;
        --bad: #9c2f1b; --wait: #7a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa8ba; --line: #333d4a; --page: #14181e;
        --good: #5fd0a0; --bad: #ff9a85; --wait: #e5c158; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
       padding: 1.2rem; max-width: 64rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); font-size: .9rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.numbers b { display: block; font-size: 1.7rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 20rem; }
th, td { text-align: right; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-size: .85rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; } figure { margin: 0 0 1rem; }
figcaption { font-size: .9rem; color: var(--soft); overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .85rem; border: 1px solid var(--line); border-radius: 4px; padding: .8rem; }
code { overflow-wrap: anywhere; } .key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none;
       padding: 0; }
.key i { display: inline-block; width: .9em; height: .9em; border: 1px solid var(--line); margin-right: .35em;
         vertical-align: -.1em; }
.verdict { border-left: 4px solid var(--wait); padding: .3rem 1rem; margin: 1rem 0; }
.verdict.promoted { border-color: var(--good); } .verdict.not { border-color: var(--bad); }
table.texts { width: 100%; } table.texts td, table.texts th { text-align: left; vertical-align: top;
       overflow-wrap: anywhere; } table.texts td:first-child { min-width: 8rem; }
.share { min-width: 8rem; } .share i { display: block; height: .8em; min-width: 1px; border: 1px solid var(--line); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 0 1.5rem; }
.plot { max-width: 40rem; margin-top: 1rem; }
.cases { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); gap: 0 1.5rem; }
"""


def html_page(title: str, sections: Sequence[str]) -> str:
    """A whole page; `title` is plain text, the sections are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def picture(path: Path, text: str) -> str:
    """A PNG file as an image inside the page; `text` says what it shows."""
    return embed(path.read_bytes(), text)


def embed(data: bytes, text: str) -> str:
    """The bytes of a PNG as an image inside the page."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A cell of a table that shows a share, 0 to 1."""

    share: float
    colour: str
    """As in #e69f00."""


Cell = str | int | Bar


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], *, kind: Literal["numbers", "texts"] = "numbers") -> str:
    """A table; the first column stands left, the others right, except in tables of texts."""
    names = "".join(f"<th>{html.escape(word)}</th>" for word in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    css = " class='texts'" if kind == "texts" else ""
    return f"<div class='scroll'><table{css}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        style = f"width:{cell.share:.2%};background:{html.escape(cell.colour)}"
        return f"<td class='share'><i style='{style}'></i></td>"
    return f"<td>{html.escape(str(cell))}</td>"
