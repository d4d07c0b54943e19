"""The HTML page of a report and its tables: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# Colors of at least 4.5:1 on their background, so that thin lines are seen too; each has its own
# mark beside it.
_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#57606a;--grid:#d8dee4;
--c0:#0b5cad;--c1:#b0420a;--c2:#1a7037;--c3:#8031b0;--c4:#a1195b;--c5:#6b5600}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e6edf3;--dim:#9aa5b1;--grid:#323a44;
--c0:#6cb2f7;--c1:#f7944f;--c2:#5cc87a;--c3:#cf9bf2;--c4:#f78cbc;--c5:#d9bd4a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
p,li{overflow-wrap:anywhere}
.scroll{overflow-x:auto}
.scroll:focus-visible{outline:2px solid var(--c0)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
caption{text-align:left;color:var(--dim);padding:.25rem 0}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--grid);text-align:right}
th[scope=row],thead th:first-child{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.5rem}
figure{margin:0}figcaption{font-weight:600}
figure>svg{width:100%;height:auto}
svg text{fill:var(--dim);font:13px system-ui,sans-serif}svg .axis{fill:var(--fg)}
.grid{stroke:var(--grid)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:7 4}
.line.s0{stroke:var(--c0)}.line.s1{stroke:var(--c1)}.line.s2{stroke:var(--c2)}
.line.s3{stroke:var(--c3)}.line.s4{stroke:var(--c4)}.line.s5{stroke:var(--c5)}
.mark.s0{fill:var(--c0)}.mark.s1{fill:var(--c1)}.mark.s2{fill:var(--c2)}
.mark.s3{fill:var(--c3)}.mark.s4{fill:var(--c4)}.mark.s5{fill:var(--c5)}
.legend{list-style:none;margin:.25rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.25rem 1rem;
font-size:.875rem}
.key{width:34px;height:12px;margin-right:.4rem;vertical-align:middle}
"""


def page(title: str, body: str) -> str:
    """Returns a whole page.

    Args:
        title: Its heading, as text.
        body: What follows, as HTML.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table that scrolls by itself where it is wider than the screen.

    Args:
        caption: What it shows, as text.
        names: The columns' names.
        rows: The cells, as text; the first of each row is its heading.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
