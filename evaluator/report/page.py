"""The report as one file of HTML that asks nobody for anything, beside its twins in Markdown and JSON.

Charts are drawn when the report is written, as SVG inside of the page. To ship Vega instead would make them
interactive, and each page a megabyte heavier, blank without scripts, slow on phones and in need of `unsafe-eval`. As it
is the page prints well, its only script is the few lines of `page.js` that go through the readings, and its own policy
lets nothing else run or load. Whoever wants to redraw a chart finds its Vega-Lite spec in `report.json`.

All readings are plain HTML: without scripts they are all there, and the browser's own search finds them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.errors import FileError, RlaifError
from evaluator.report import numbers
from evaluator.report.charts import COLORS
from evaluator.report.document import MOST, Report, clean, fitted, plain
from evaluator.report.markdown import markdown

_HERE = Path(__file__).parent
_SNIPPET = 160


def write(report: Report, folder: Path, most: int = MOST) -> Path:
    """Write report.html, report.md and report.json, whole or not at all; returns the page's path.

    At most so many readings are put in; the page says how many were left out. The same report makes the same bytes.
    Raises FileError, and RlaifError where what draws the charts is not installed.
    """
    report = fitted(clean(report), most)
    twins = {
        "report.json": json.dumps(plain(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".report.") as aside:
            for name, text in twins.items():
                (Path(aside) / name).write_text(text, encoding="utf-8", newline="\n")
            for name in twins:  # the disk has room for all of them before the first takes its place
                (Path(aside) / name).replace(folder / name)
    except OSError as error:
        raise FileError(f"{folder}: the report cannot be written: {error.strerror or error}") from error
    return folder / "report.html"


def html(report: Report) -> str:
    """The page. Expects a clean report."""
    style = (_HERE / "page.css").read_text(encoding="utf-8") + _dark()
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    tags = Counter(tag for reading in report.readings for tag in dict.fromkeys(reading.tags))
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        report=report,
        policy=policy + "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704 (our own files, and nothing of the data, go in as they are)
        script=Markup(script),  # noqa: S704
        tags=tags,
        places={tag: place for place, tag in enumerate(tags)},
        numbers=numbers,
        drawn=drawn,
        snippet=_snippet,
    )


def drawn(chart: Mapping[str, Any], title: str) -> Markup:
    """A Vega-Lite spec as SVG. What names hold is escaped by Vega; data from elsewhere is not fetched."""
    try:
        import vl_convert
    except ImportError:
        raise RlaifError("a report needs vl-convert to draw charts: pip install 'rlaif-service[report]'") from None
    svg = vl_convert.vegalite_to_svg(json.dumps(plain(chart)), allowed_base_urls=[])
    return Markup('<svg role="img" aria-label="{}" ').format(title) + Markup(svg.removeprefix("<svg "))  # noqa: S704


def _dark() -> str:
    """Charts are drawn in the colours of paper; on a dark screen each becomes its counterpart."""
    rules = [
        f'  .chart [{what}="{paper}"] {{ {what}: {dark}; }}'
        for paper, dark in COLORS.items()
        for what in ("fill", "stroke")
    ]
    return "\n@media screen and (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}\n"


def _digest(text: str) -> str:
    """The hash by which a policy names what stands inline."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _snippet(text: str) -> str:
    words = " ".join(text[: 4 * _SNIPPET].split())
    return words if len(words) <= _SNIPPET else words[:_SNIPPET] + "…"
