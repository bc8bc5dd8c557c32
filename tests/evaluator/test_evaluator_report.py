"""The report's three files say the same, whatever the data holds."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_sample import HACK, sample

from data.errors import FileError, RlaifError
from evaluator.intervals import Interval
from evaluator.report import charts, numbers
from evaluator.report.document import Figure, Reading, Report, Section, Table, clean, fitted
from evaluator.report.markdown import markdown
from evaluator.report.page import drawn, write

NASTY = f"a|b `c` ```\n# d\n{HACK} [e](http://f) ![g](h) \x00\ud800 \u2028 & &lt; *i* _j_ ~~k~~ \\ $l$ <!-- \" ' \u202e"


class Page(HTMLParser):
    """What a parser of HTML makes of the page: its elements, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells[-1] += data


def nasty() -> Report:
    shares = {NASTY: Interval(0.5, 0.4, 0.6, 9), "plain": Interval(nan, nan, nan, 0)}
    table = Table((NASTY, "value"), list(shares.items()))
    return Report(
        title=NASTY,
        headlines=(NASTY,),
        sections=(Section(NASTY, (NASTY,), (Figure(NASTY, NASTY, charts.intervals(shares, NASTY), table),), (table,)),),
        readings=(Reading(NASTY, NASTY, (NASTY, NASTY), (NASTY,), {NASTY: NASTY}, NASTY, (NASTY,)),),
        facts={NASTY: NASTY},
        result={NASTY: nan},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_three_files_and_nothing_else(tmp_path: Path):
    page = write(sample(), tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    assert set(files(page.parent)) == {"report.html", "report.md", "report.json"}


def test_the_same_report_makes_the_same_bytes(tmp_path: Path):
    assert files(write(sample(), tmp_path / "a").parent) == files(write(sample(), tmp_path / "b").parent)


def test_the_page_needs_nothing_from_outside(tmp_path: Path):
    page = Page(write(sample(), tmp_path).read_text())
    addresses = {
        value
        for _, each in page.elements
        for name, value in each.items()
        if name in {"src", "href", "xlink:href", "srcset"}
    }
    assert all(value and value.startswith(("#", "data:,")) for value in addresses)
    assert not {"iframe", "object", "embed", "image", "foreignobject", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [name for _, each in page.elements for name in each if name == "style" or name.startswith("on")]


def test_nothing_in_the_data_becomes_markup(tmp_path: Path):
    folder = write(nasty(), tmp_path).parent
    page = Page((folder / "report.html").read_text())
    tame = Page(write(replace(sample(1), sections=nasty().sections), tmp_path / "tame").read_text())
    known = {tag for tag, _ in tame.elements} | {"circle"}
    assert {tag for tag, _ in page.elements} <= known
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert sum(HACK in text for text in page.texts) > 8


def test_markdown_says_the_same_words_and_no_html():
    report = fitted(clean(nasty()))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").parse(markdown(report))
    inline = [each for token in tokens for each in token.children or []]
    assert {token.type for token in inline} <= {"text", "text_special", "code_inline"}
    assert not [token for token in tokens if token.type.startswith("html")]
    assert [token.content for token in tokens if token.type == "fence"] == [clean(NASTY) + "\n"] * 4
    assert sum(token.type == "heading_open" for token in tokens) == 6
    assert sum(token.type == "td_open" for token in tokens) == 2 * 2 * 2
    words = " ".join(clean(NASTY).split())
    texts = ["".join(each.content for each in token.children or []) for token in tokens if token.type == "inline"]
    assert texts.count(words) >= 6


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab 1.)#>+=:-`~*_[]()!<&|\\\n\t$"), max_size=25))
def test_any_text_stays_text_in_markdown(text: str):
    written = markdown(
        clean(Report(title="t", headlines=(text,), sections=(Section("s", (text,)),), facts={"f": text}))
    )
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(written)
    inline = [each for token in tokens for each in token.children or []]
    assert {token.type for token in inline} <= {"text", "text_special", "code_inline"}
    words = " ".join(text.split())
    texts = ["".join(each.content for each in token.children or []) for token in tokens if token.type == "inline"]
    assert texts.count(words) >= (2 if words else 0)
    assert "t" in texts
    assert "s" in texts


def test_page_and_markdown_have_the_same_tables(tmp_path: Path):
    folder = write(sample(), tmp_path).parent
    rendered = MarkdownIt("commonmark").enable("table").render((folder / "report.md").read_text())
    assert Page(rendered).cells == Page((folder / "report.html").read_text()).cells
    assert "0.714 [0.688, 0.739]" in Page(rendered).cells


def test_json_has_the_numbers_the_readings_and_null_for_none(tmp_path: Path):
    text = write(sample(), tmp_path).with_name("report.json").read_text()
    twin = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert twin["result"] == {"alignment": sample().result["alignment"], "kappa": {"value": None}}
    assert twin["title"] == sample().title
    assert twin["headlines"] == list(sample().headlines)
    assert [each["weight"] for each in twin["readings"]] == sorted((r.weight for r in sample().readings), reverse=True)


def test_nan_is_never_printed(tmp_path: Path):
    folder = write(nasty(), tmp_path).parent
    for name, content in files(folder).items():
        assert not re.search(r"\b(nan|inf|infinity)\b", content.decode(), re.IGNORECASE), name
    assert numbers.NOTE in (folder / "report.md").read_text()
    assert numbers.NOTE in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.5, 0.1234, nan], ["0.500", "0.123", "–"]),
        ([62.53, 7.0], ["62.5", "7.0"]),
        ([1204.0, 0.2], ["1,204", "0"]),
        ([12, 3], ["12", "3"]),
        ([inf, None, "words"], ["–", "–", "words"]),
        ([Interval(0.625, 0.48, 0.75, 48)], ["0.625 [0.480, 0.750]"]),
        ([Interval(0.625, nan, nan, 48)], ["0.625 [–, –]"]),
    ],
)
def test_a_column_has_one_number_of_decimals(values: list[numbers.Cell], texts: list[str]):
    assert numbers.column(values) == texts


@pytest.mark.parametrize("text", ["–", "0.5 [–, –]", "0.5 [–, 0.7]"])
def test_a_dash_for_a_number_is_explained(text: str):
    assert numbers.note([("a", text)])
    assert not numbers.note([("a – b", "x–y")])


def test_the_heaviest_come_first_and_the_rest_is_counted(tmp_path: Path):
    readings = [Reading(f"t{weight}", "p", ("a", "b"), weight=weight) for weight in (1.0, 3.0, nan, 2.0)]
    report = Report("t", (), readings=readings, left_out=5)
    assert [each.title for each in fitted(report, 2).readings] == ["t3.0", "t2.0"]
    assert fitted(report, 2).left_out == 7
    folder = write(report, tmp_path, most=2).parent
    assert "7 more were left out" in (folder / "report.html").read_text()
    assert "7 more were left out" in (folder / "report.md").read_text()


@pytest.mark.parametrize("text", ["x" * 50_000, "<" * 50_000, "日" * 50_000])
def test_the_page_stays_small_whatever_is_read(tmp_path: Path, text: str):
    long = [Reading("t", text, (text,) * 9, rationale=text) for _ in range(300)]
    page = write(replace(sample(), readings=long), tmp_path)
    assert page.stat().st_size < 5_000_000
    left = re.search(r"(\d+) more were left out", page.read_text())
    assert left is not None
    assert 0 < int(left[1]) < 300
    assert "(30,000 more characters)" in page.read_text()


def test_a_report_with_hardly_anything(tmp_path: Path):
    folder = write(Report("Only a title", ()), tmp_path).parent
    assert (folder / "report.md").read_text() == "# Only a title\n"
    assert "What to read" not in (folder / "report.html").read_text()


CHARTS = {
    "reliability": lambda name: charts.reliability(
        [(0.6, Interval(0.5, nan, nan, 3)), (nan, Interval(nan, nan, nan, 0))]
    ),
    "intervals": lambda name: charts.intervals({name: Interval(0.5, nan, 0.6, 3)}, name, reference=0.5),
    "matrix": lambda name: charts.matrix([name, "b"], [[nan, 0.2], [0.8, inf]], x=name, middle=0.5),
    "histogram": lambda name: charts.histogram([0.1, nan, 0.9], name),
    "lines": lambda name: charts.lines({name: [(0, 0.1), (1, nan)], "b": [(0, Interval(1, 0, 2, 3))]}, name, name),
    "bars": lambda name: charts.bars({name: 3, "b": Interval(2, 1, 3, 3), "c": nan}, name),
}
NOTHING = {
    "reliability": lambda: charts.reliability([]),
    "intervals": lambda: charts.intervals({}, "x"),
    "matrix": lambda: charts.matrix([], []),
    "histogram": lambda: charts.histogram([], "x"),
    "lines": lambda: charts.lines({}, "x", "y"),
    "bars": lambda: charts.bars({}, "x"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_take_any_name_and_any_number(kind: str):
    spec = clean(CHARTS[kind](NASTY))
    json.dumps(spec, allow_nan=False)
    svg = Page(drawn(spec, NASTY))
    assert {tag for tag, _ in svg.elements} <= {"svg", "g", "path", "text", "line", "rect", "tspan", "defs", "clippath"}
    assert "nan" not in str(drawn(spec, "")).lower()


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_use_no_colour_that_the_dark_page_does_not_know(kind: str):
    found = set(re.findall(r'(?:fill|stroke)="(#[^"]+|[a-z]+)"', drawn(CHARTS[kind]("a"), "")))
    assert found <= {*charts.COLORS, "none", "transparent"}


@pytest.mark.parametrize("kind", NOTHING)
def test_charts_of_nothing_are_drawn_empty(kind: str):
    assert drawn(NOTHING[kind](), "").startswith("<svg")


def test_a_chart_fetches_nothing():
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        drawn({"data": {"url": "http://127.0.0.1:9/x.json"}, "mark": "point", "encoding": {}}, "")


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str):
    report = sample(1)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RlaifError, match=re.escape("pip install 'rlaif-service[report]'")):
        write(report, tmp_path) if package == "vl_convert" else sample(1)
    assert files(tmp_path) == {}


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot be written"):
        write(sample(1), tmp_path / "file" / "report")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = files(write(sample(1), tmp_path).parent)
    real = Path.write_text

    def full(path: Path, *words: object, **more: object) -> int:
        if path.name == "report.html":
            raise OSError(28, "No space left on device")
        return real(path, *words, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FileError, match="No space left"):
        write(sample(2), tmp_path)
    assert files(tmp_path) == before


def test_the_policy_names_what_stands_inline(tmp_path: Path):
    text = write(sample(1), tmp_path).read_text()
    policy = html.unescape(re.findall(r'Security-Policy" content="([^"]+)"', text)[0])
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
