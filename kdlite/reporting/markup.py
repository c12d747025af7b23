"""What a page is built of: its frame, and elements whose words are never markup."""

from __future__ import annotations

import html
from collections.abc import Sequence


def section(title: str, *parts: str) -> str:
    """Returns a section of parts that are markup already; empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>"


def paragraph(text: str) -> str:
    """Returns a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """Returns a list; nothing of no lines."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


_LONG = 18  # characters of a cell that are words, and may go into several lines


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    named_above: bool = False,
) -> str:
    """Returns a table, which scrolls where it is too wide.

    Args:
        header: Of the columns.
        rows: Cells, as many in each row; the first is the row's header.
        caption: What the table shows.
        named_above: Whether the heading above says so, too: the caption is then for
            those alone who do not see.
    """
    head = "".join(_cell(cell, 'th scope="col"', _LONG // 2) for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(map(_cell, row[1:]))
        + "</tr>\n"
        for row in rows
    )
    unseen = ' class="unseen"' if named_above else ""
    return (
        f'<div class="wide" tabindex="0" role="region" '
        f'aria-label="{html.escape(caption)}">'
        f"<table><caption{unseen}>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, tag: str = "td", long: int = _LONG) -> str:
    kind = ' class="words"' if len(text) > long else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag.partition(' ')[0]}>"


def figure(svg: str, words: str) -> str:
    """Returns a figure with a caption."""
    return f"<figure>{svg}<figcaption>{html.escape(words)}</figcaption></figure>"


def figures_in_a_row(figures: Sequence[str], large: bool = False) -> str:
    """Returns figures side by side as far as there is room; nothing of none."""
    kind = "plots large" if large else "plots"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


#: The frame: a title, a summary, a legend and the body are put in.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --paper: #ffffff; --card: #f5f6f8; --ink: #1b1e23; --soft: #565d68;
  --faint: #7f8692; --line: #dfe2e7; --accent: #3d85db;
  --good: #0b6e4f; --bad: #b3261e;
  --s0: #6b7280; --s1: #b45309; --s2: #1d6fd1; --s3: #0e7c86;
  --s4: #8b2fd6; --s5: #b8246f; --s6: #4d7c0f; --s7: #b91c1c;
}}
@media (prefers-color-scheme: dark) {{ :root {{
  --paper: #14171b; --card: #1e2228; --ink: #e8eaed; --soft: #aab1bc;
  --faint: #7d8591; --line: #333942; --accent: #4c8fdf;
  --good: #5fd3a4; --bad: #ff9a92;
  --s0: #a9b1bd; --s1: #f2a93b; --s2: #6db1ff; --s3: #3fc8bd;
  --s4: #c99bff; --s5: #ff8cc6; --s6: #a8cf5a; --s7: #ff8a80;
}} }}
@media print {{ :root {{
  color-scheme: light;
  --paper: #ffffff; --card: #f5f6f8; --ink: #000000; --soft: #444444;
  --faint: #777777; --line: #cccccc; --accent: #3d85db;
  --good: #0b6e4f; --bad: #b3261e;
  --s0: #6b7280; --s1: #b45309; --s2: #1d6fd1; --s3: #0e7c86;
  --s4: #8b2fd6; --s5: #b8246f; --s6: #4d7c0f; --s7: #b91c1c;
}} }}
* {{ box-sizing: border-box; }}
body {{
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere;
}}
h1 {{ margin: 0 0 .2rem; line-height: 1.2; }}
h2 {{ margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }}
h3, h4 {{ margin: 1.6rem 0 .5rem; }}
p, li {{ max-width: 46rem; }}
header p {{ font-size: 1.1rem; color: var(--soft); }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none;
  padding: 0; margin: .8rem 0; }}
.wide {{ overflow-x: auto; margin: .8rem 0 1.2rem;
  /* A shadow at an end beyond which there is more; at the end a cover moves over it. */
  background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 2rem 100% local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 2rem 100% local,
    linear-gradient(to right, var(--line), transparent) left / .8rem 100% scroll,
    linear-gradient(to left, var(--line), transparent) right / .8rem 100% scroll;
  background-repeat: no-repeat; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }}
caption {{ text-align: left; color: var(--soft); padding: 0 0 .3rem;
  width: max-content; max-width: min(100vw - 2rem, 46rem); }}
caption.unseen {{ position: absolute; width: 1px; height: 1px; padding: 0;
  overflow: hidden; clip-path: inset(50%); }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; font-weight: normal; }}
thead th {{ color: var(--soft); vertical-align: bottom; white-space: normal;
  font-size: .9rem; }}
tbody th {{ text-align: left; white-space: normal; min-width: 7rem; }}
td.words {{ white-space: normal; min-width: 7.5rem; }}
th:first-child {{ padding-left: 0; text-align: left; }}
table.heat td, table.heat thead th {{ text-align: center; padding: .3rem .4rem;
  min-width: 2.9rem; }}
table.heat thead th {{ max-width: 7rem; }}
table.heat td {{
  background: color-mix(in srgb, var(--accent) calc(var(--v, 0) * 55%), transparent);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.plots {{ display: grid; gap: 1rem; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }}
.plots.large {{ grid-template-columns:
  repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; padding: .7rem; background: var(--card); border-radius: 8px; }}
figcaption {{ font-size: .88rem; color: var(--soft); }}
figcaption b {{ color: var(--ink); }}
svg {{ display: block; width: 100%; height: auto; margin: 0 auto .4rem; }}
svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
svg text {{ font-family: system-ui, sans-serif; }}
.examples {{ display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }}
.examples ul {{ margin: .3rem 0 0; padding-left: 1.1rem; }}
.sample {{ display: block; width: 7rem; image-rendering: pixelated;
  border-radius: 4px; margin-bottom: .4rem; }}
code {{ font-size: .85rem; display: block; margin-bottom: .4rem; }}
.right {{ color: var(--good); }}
.wrong {{ color: var(--bad); }}
@media (max-width: 30rem) {{
  body {{ font-size: 15px; }} th, td {{ padding: .3rem .45rem; }}
  .examples {{ grid-template-columns: repeat(2, 1fr); }} figure {{ padding: .5rem; }}
  h1 {{ font-size: 1.6rem; }} thead .words {{ min-width: 4.5rem; }}
}}
@media print {{
  html {{ font-size: 10.5px; }}
  body {{ font-size: 1rem; max-width: none; padding: 0; }}
  h2, h2 + p, h3, h4 {{ break-after: avoid; }} h2 {{ margin-top: 1.4rem; }}
  figure, tr, .wide {{ break-inside: avoid; }}
  .wide {{ overflow: visible; background: none; }}
  th, td {{ padding: .2rem .4rem; }}
  table.heat td, table.heat thead th {{ min-width: 0; padding: .2rem; }}
  .plots {{ grid-template-columns: repeat(3, 1fr); }}
  .plots.large {{ grid-template-columns: repeat(2, 1fr); }}
  .examples {{ grid-template-columns: repeat(4, 1fr); }} .sample {{ width: 4rem; }}
}}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{summary}</p>
<ul class="legend" aria-label="Colours and signs in the plots">{legend}</ul>
</header>
<main>
{body}
</main>
</body>
</html>
"""
