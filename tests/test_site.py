"""The built site in a real Chromium with the network cut: over http and as files, in light and dark."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import axe_playwright_python.base
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.utils import new_document

from conftest import CHAPTERS, ROOT, Visit, extension
from scripts import home
from taskvec_mini.scores import table

CONTENTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [f"{CONTENTS['root']}.html"]
PAGES += [f"{entry['file']}.html" for part in CONTENTS["parts"] for entry in part["chapters"]]
CHAPTER_PAGES = [f"book/{path.stem}.html" for path in CHAPTERS]
PROSE = """() => {
  const text = document.querySelector("main").cloneNode(true);
  text.querySelectorAll("pre, code, script, style, mjx-container").forEach(one => one.remove());
  return text.textContent;
}"""
SETTLED = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
  for (const one of document.getAnimations()) try { one.finish() } catch {}
  done();
})))"""
FIRST_VIEW = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
LARGEST = 1_000_000  # bytes of a page, its pictures included, without what all pages share
# What the theme does and we cannot mend from here: rule of axe-core, selector, reason.
THEME: list[tuple[str, str, str]] = []
every_page = pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])


@every_page
@pytest.mark.parametrize(("by", "theme"), [("http", "light"), ("file", "dark")])
def test_a_page_on_a_desk_is_whole_and_fit_for_everybody(
    site: Path, address: str, visit: Any, page: str, by: str, theme: str
) -> None:
    """All that can be asked in one visit, for a visit is what takes long."""
    query = "?q=gradient" if page == "search.html" else ""
    seen = visit((address if by == "http" else site.as_uri()) + f"/{page}{query}", theme=theme, width=1280)
    check_whole(seen)
    check_questions(seen, (site / page).read_text(encoding="utf-8"))
    check_nothing_is_cut(seen, 1280)
    assert seen.outside == []
    assert seen.complaints == []
    check_axe(seen, theme)  # at last: it fetches things itself


def check_whole(seen: Visit) -> None:
    """Formulas are drawn, and nothing is loaded from elsewhere or too large."""
    assert seen.outside == []
    assert seen.complaints == []
    formulas = seen.page.locator(".math").count()
    assert seen.page.locator(".math mjx-container").count() == formulas
    assert seen.page.locator("mjx-merror").count() == 0
    assert "$" not in seen.page.evaluate(PROSE), "a formula was left as text"
    assert seen.own_bytes <= LARGEST


def test_formulas_are_drawn_at_all(address: str, visit: Any) -> None:
    """So that the count above cannot be right because nothing is counted."""
    seen = visit(f"{address}/{CHAPTER_PAGES[-1]}")
    assert seen.page.locator("mjx-container svg").count() >= 1


@pytest.mark.parametrize("by", ["http", "file"])
def test_the_search_finds_pages(site: Path, address: str, visit: Any, by: str) -> None:
    seen = visit((address if by == "http" else site.as_uri()) + "/search.html?q=gradient")
    seen.page.wait_for_selector("#search-results li a")
    assert seen.page.locator("#search-results li a").count() >= 3
    assert seen.complaints == []


def check_axe(seen: Visit, theme: str) -> None:
    """axe finds nothing serious, in what is folded neither: `check_nothing_is_cut` has opened it.

    In the dark it looks at colours alone: all else is the same page, and was looked at in light.
    """
    assert seen.page.locator("html").get_attribute("data-theme") == theme
    assert seen.page.locator("details:not([open])").count() == 0
    seen.page.evaluate(SETTLED)  # what opens fades in, and half-way its colours are too pale
    assert violations(seen, rules=COLOURS if theme == "dark" else None) == []


COLOURS = ["color-contrast", "link-in-text-block"]  # the rules of axe-core that ask for them
# A chapter has thousands of coloured words of code in a few colours: of each kind and place one is looked at.
# The others become plain text before, for axe takes long over so many elements.
AXE = """async rules => {
  const kinds = new Set(), plain = [];
  for (const one of document.querySelectorAll(".highlight pre span")) {
    const place = one.closest(".cell, .highlight").className;
    const ground = getComputedStyle(one.closest("pre")).backgroundColor;
    const kind = `${getComputedStyle(one).color} on ${ground} in ${place}: ${one.className}`;
    const text = one.textContent.trim().length > 1 && one.checkVisibility();  // to axe a letter is none
    if (!text || kinds.has(kind)) plain.push(one);
    else kinds.add(kind);
  }
  plain.forEach(one => one.replaceWith(...one.childNodes));
  return axe.run(document, {resultTypes: ["violations"], ...(rules ? {runOnly: rules} : {})});
}"""


def violations(seen: Visit, *, rules: list[str] | None = None) -> list[str]:
    """What axe finds that is serious and ours, by some of its rules or by all."""
    seen.page.evaluate(axe_playwright_python.base.AXE_SCRIPT)
    run = seen.page.evaluate(AXE, rules)
    assert run["passes"], "axe did not look at anything"
    return [text for violation in run["violations"] for text in ours(violation)]


def test_a_pale_word_of_code_would_be_found(address: str, visit: Any) -> None:
    seen = visit(f"{address}/{CHAPTER_PAGES[0]}", width=1280)
    check_nothing_is_cut(seen, 1280)  # which opens the drawers
    seen.page.evaluate(SETTLED)
    seen.page.add_style_tag(content=".highlight .k { color: #eee !important; }")
    assert any("color-contrast" in text for text in violations(seen))


def ours(violation: dict[str, Any]) -> list[str]:
    """The serious findings of one rule that are not the theme's own."""
    if violation["impact"] not in ("serious", "critical"):
        return []
    said = []
    for node in violation["nodes"]:
        target = " ".join(map(str, node["target"]))
        if not any(rule == violation["id"] and re.search(selector, target) for rule, selector, _ in THEME):
            said.append(f"{violation['id']}: {target}: {node['html'][:200]} ({node['failureSummary']})")
    return said


SLOWED = 4  # how many times slower than this machine a processor is made for the next test


@pytest.mark.parametrize("page", [PAGES[0], CHAPTER_PAGES[0]])
def test_the_first_view_on_a_slowed_processor_is_measured(
    address: str, visit: Any, page: str, record_property: Any
) -> None:
    """Printed at the end and not asserted: a busy machine is no fault of the page."""
    seen = visit(f"{address}/{page}", width=390)
    session = seen.page.context.new_cdp_session(seen.page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWED})
    seen.page.reload(wait_until="load")
    painted = seen.page.evaluate(FIRST_VIEW)
    assert painted > 0
    record_property("measured", f"first view of {page}, processor {SLOWED} times slower: {painted:.0f} ms")


# --- questions


def check_questions(seen: Visit, source: str) -> None:
    """Every question of a chapter hides its answer until a guess is made, with the keyboard alone."""
    asked = seen.page.locator(".guess")
    assert bool(asked.count()) == ("guess.js" in source)
    for question in asked.all():
        if question.get_attribute("data-hides") == "0":
            continue
        assert question.get_attribute("data-state") == "waiting", "nothing follows that it could hide"
        waiting = seen.page.locator("[hidden=until-found]").count()
        question.locator("summary").last.focus()
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_function("one => one.dataset.state === 'open'", arg=question.element_handle())
        assert seen.page.locator("[hidden=until-found]").count() < waiting


# --- on a phone

# What is wider than its place, unless a frame of its own lets it scroll.
CUT = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  document.querySelectorAll("details").forEach(one => one.open = true);
  const frames = ".table-frame, .figure-frame, .explore-chart, .pst-scrollable-table-container, " +
    "mjx-container, p, li, .cell_input, .highlight-default, .highlight-python, .highlight-ipython3";
  const parts = ".bd-article .cell_output, .bd-article .cell_output *, .bd-article figure, .bd-article table";
  const looked = [...document.querySelectorAll(parts)]
    .filter(one => one.clientWidth && !one.closest("svg, .explore-hidden"));
  const cut = looked.filter(one => one.scrollWidth > one.clientWidth + 1 && !one.closest(frames) &&
    getComputedStyle(one).display !== "inline");
  const hides = one => ["hidden", "clip"].includes(getComputedStyle(one).overflowX);
  const formulas = [...document.querySelectorAll(".bd-article .math")];
  cut.push(...formulas.filter(one => one.scrollWidth > one.clientWidth + 1 && hides(one)));
  return cut.map(one => `${one.tagName}.${one.className}: ${one.scrollWidth} > ${one.clientWidth}`);
}"""
# The figures a page shows at this width: the file, and the pixels it is wide.
FIGURES = """() => [...document.querySelectorAll(".bd-article .cell_output img")]
  .filter(one => one.currentSrc.includes("_images/")).map(one => [one.currentSrc, one.clientWidth])"""
CHART_TEXTS = """() => [...document.querySelectorAll(".explore svg text")].map(one => {
  const svg = one.closest("svg");
  return parseFloat(getComputedStyle(one).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width;
})"""
VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ')
LETTERS = re.compile(r"scale\(([\d.]+) -")  # matplotlib's letters have 100 units, scaled to points


def check_nothing_is_cut(seen: Visit, width: int) -> None:
    assert seen.page.evaluate(CUT) == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


@every_page
def test_on_a_phone_and_a_tablet_nothing_is_cut_and_letters_are_large_enough(
    site: Path, address: str, visit: Any, page: str, record_property: Any
) -> None:
    seen = visit(f"{address}/{page}", width=390)
    record_property("measured", f"first view of {page}: {seen.page.evaluate(FIRST_VIEW):.0f} ms")
    if page in CHAPTER_PAGES:
        check_letters(seen, site)
    check_nothing_is_cut(seen, 390)
    seen.page.set_viewport_size({"width": 768, "height": 1024})
    check_nothing_is_cut(seen, 768)


def test_what_is_cut_would_be_found(address: str, visit: Any) -> None:
    seen = visit(f"{address}/{CHAPTER_PAGES[0]}", width=390)
    seen.page.evaluate(
        """() => document.querySelector(".cell_output").insertAdjacentHTML("beforeend",
             "<div style='overflow: auto'><div style='width: 900px'>a wide table</div></div>")"""
    )
    assert len(seen.page.evaluate(CUT)) == 1


def test_a_long_formula_in_a_line_scrolls_and_keeps_its_full_stop(address: str, visit: Any) -> None:
    seen = visit(f"{address}/book/04_bounding_the_gap.html", width=390)
    seen.page.add_style_tag(content=".bd-article span.math { overflow: hidden !important; }")
    assert seen.page.evaluate(CUT), "the theme's own rule hides the end of a formula: that is found"
    marks = seen.page.evaluate("""() => [...document.querySelectorAll(".together")].map(one => {
      const range = document.createRange();
      range.selectNode(one.lastChild);
      const stop = range.getBoundingClientRect();
      const formula = one.querySelector("mjx-container").getBoundingClientRect();
      return stop.top < formula.bottom && formula.top < stop.bottom;
    })""")
    assert len(marks) > 10
    assert all(marks), "a mark stands in the line of its formula"


def test_every_full_stop_stays_behind_its_own_word_of_code() -> None:
    document = new_document("page")
    words = [nodes.literal(text=name) for name in (40 * "one", "two", "three")]
    ends = [nodes.Text("."), nodes.Text("."), nodes.Text(", and more")]
    document += nodes.paragraph("", "", *(part for pair in zip(words, ends, strict=True) for part in pair))
    extension("look")._with_their_marks(None, document)
    assert document.astext() == f"{40 * 'one'}.two.three, and more"
    together = [part.astext() for part in document.findall(nodes.inline) if "together" in part["classes"]]
    assert together == ["two.", "three,"]  # a long one may break


def check_letters(seen: Visit, site: Path) -> None:
    """No text of a figure is smaller than 11 pixels, and none of a chart than 12."""
    seen.page.evaluate(
        "() => document.querySelectorAll('[hidden]').forEach(one => one.removeAttribute('hidden'))"
    )
    figures = seen.page.evaluate(FIGURES)
    assert figures
    for source, shown in figures:
        file = site / "_images" / source.rpartition("/")[2]
        if file.suffix != ".svg":
            assert shown >= 650, "pixels have no letters to measure: they scroll, as wide as on a desk"
            continue
        drawn = file.read_text(encoding="utf-8")
        box, letters = VIEW_BOX.search(drawn), LETTERS.findall(drawn)
        assert box is not None
        smallest = 100 * min(map(float, letters), default=1) * shown / float(box.group(1))
        assert smallest >= 11, f"{file.name}: {smallest:.1f} pixels"
    texts = seen.page.evaluate(CHART_TEXTS)
    assert texts
    assert min(texts) >= 11.99


# --- drawers and the head of a page


@pytest.mark.parametrize("page", CHAPTER_PAGES)
def test_drawers_have_names_and_none_follows_another_that_shows_nothing(site: Path, page: str) -> None:
    soup = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")
    drawers = soup.select("details.hide")
    assert drawers
    for drawer in drawers:
        summary = drawer.find("summary")
        assert not summary.has_attr("aria-label"), "it would be read out in place of the name"
        assert "code cell" not in summary.get_text()
    silent = [
        cell
        for cell in soup.select("div.cell")
        if not cell.select_one(".cell_output, .cell_input:not(details *)")
    ]
    for cell in silent:
        following = cell.find_next_sibling()
        named = following is not None and following.select_one(":scope > details.above-input")
        assert not named or cell.select_one("summary").get_text() != named.select_one("summary").get_text()


def test_the_large_script_of_the_icons_keeps_no_view_waiting(site: Path) -> None:
    for path in site.glob("book/*.html"):
        (script,) = re.findall(r"<script[^>]*fontawesome\.js[^>]*>", path.read_text(encoding="utf-8"))
        assert " defer " in script


# --- printed tables


def test_a_printed_table_is_found_with_its_caption_and_comes_out_cell_by_cell() -> None:
    tables = extension("printed_tables")
    rows = {"all, seed 0": {"share": 0.5, "range": "0.18–0.24"}, "none": {"share": -0.25, "range": "—"}}
    printed = "chosen on validation:\n" + table(rows, index="pretrained on", digits=2) + "\n\nand a remark\n"
    (_, shown), (kind, rest) = tables.replaced(printed, caption="")
    cells = re.findall(r"<(t[hd]|caption)\b([^>]*)>(.*?)</\1>", shown)
    assert [(tag, text) for tag, _, text in cells] == [
        ("caption", "chosen on validation"),
        ("th", "pretrained on"), ("th", "share"), ("th", "range"),
        ("th", "all, seed 0"), ("td", "0.50"), ("td", "0.18–0.24"),
        ("th", "none"), ("td", "-0.25"), ("td", "—"),
    ]  # fmt: skip
    assert [text for _, look, text in cells if "number" in look] == [
        "share", "range", "0.50", "0.18–0.24", "-0.25", "—"
    ]  # fmt: skip
    assert (kind, rest.strip()) == ("text", "and a remark")


@pytest.mark.parametrize(
    "text", ["one line\n", "correct\nchosen: 1.0\n", "a sentence that goes\non and on\n", ""]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert extension("printed_tables").replaced(text, caption="") == [("text", text)]


def test_a_smaller_table_above_a_larger_one_is_a_table_too() -> None:
    printed = "by age\nrule   1  2\nmean   3  4\n\nby kind\nrule   1  2  3\nmean   3  4  5\nties   6  7  8\n"
    pieces = extension("printed_tables").replaced(printed, caption="")
    assert [kind for kind, _ in pieces] == ["table", "table"]
    assert [re.findall("<caption>(.*?)</caption>", html) for _, html in pieces] == [["by age"], ["by kind"]]


def test_names_of_rows_that_begin_with_a_number_are_words() -> None:
    tables = extension("printed_tables")
    (_, words), (_, numbers) = (
        tables.replaced(f"merged      mean\n{name}  0.5\n", caption="")[0]
        for name in ("2 of three", "2         ")
    )
    assert '<th scope="row">2 of three</th>' in words
    assert '<th scope="row" class="number">2</th>' in numbers


def test_every_table_of_a_cell_stands_in_a_frame(site: Path) -> None:
    for page in CHAPTER_PAGES:
        text = (site / page).read_text(encoding="utf-8")
        assert text.count('class="table-frame"') == text.count(
            '<div class="output stream"><div class="table-frame"'
        )


def test_no_chapter_prints_a_table_that_stays_text() -> None:
    """Text of five columns and more is a table, whoever calls `table` for it."""
    tables = extension("printed_tables")
    found = 0
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            given = cell.metadata.get("taskvec_mini", {})
            for output in cell.get("outputs", []):
                if output.get("name") != "stdout":
                    continue
                lines = output.text.rstrip("\n").split("\n")
                place = tables.find_table(lines)
                if place and len(tables.columns(lines[slice(*place)])) >= 5:
                    found += 1
                    assert tables.prints_table(cell.source, given), f"{path.stem}: {cell.source[:60]}"
    assert found > 20
    assert not tables.prints_table("show(images)", {})


def test_the_columns_of_every_stored_table_are_those_its_rows_have() -> None:
    """Any table of `scores.table` is cut into as many columns as it has: with gaps, blanks, one row, many."""
    tables = extension("printed_tables")
    rows = [
        {"a b": 1, "c": "x y z", "d": ""},
        {"a b": 22, "c": "", "d": "—"},
        {"a b": 3, "c": "long words here", "d": "q"},
    ]
    for count in (1, 2, 3):
        lines = table(rows[:count]).split("\n")
        cut = [[line[start:end].strip() for start, end in tables.columns(lines)] for line in lines]
        assert cut == [["a b", "c", "d"], *([str(v) for v in row.values()] for row in rows[:count])]


# --- before the book has a home


class Application:
    """What an extension sees of Sphinx: settings, and handlers by event."""

    def __init__(self, address: str) -> None:
        self.config = SimpleNamespace(
            html_theme_options={
                "repository_url": address,
                "launch_buttons": {"colab_url": "https://colab.research.google.com"},
                "use_repository_button": True,
                "use_issues_button": True,
            }
        )
        self.handlers: dict[str, Any] = {}

    def connect(self, event: str, handler: Any) -> None:
        self.handlers[event] = handler


def linked(address: str) -> tuple[Application, nodes.document]:
    """The application, and a document with a badge and a link, after the extension has seen them."""
    application = Application(address)
    extension("before_home").setup(application)
    document = new_document("page")
    badge = (
        f"https://colab.research.google.com/github/{address.removeprefix('https://github.com/')}/blob/x.ipynb"
    )
    document += nodes.paragraph("", "", nodes.reference("", "", nodes.image(uri="badge.svg"), refuri=badge))
    issue = nodes.reference("", "open an issue", refuri=f"{address}/issues")
    other = nodes.reference("", "the paper", refuri="https://arxiv.org/abs/2510.23629")
    document += nodes.paragraph("", "", nodes.Text("Please "), issue, nodes.Text(" or read "), other)
    application.handlers["config-inited"](application, application.config)
    application.handlers["doctree-read"](application, document)
    return application, document


def test_links_and_badges_to_the_placeholder_are_not_shown_and_their_words_stay() -> None:
    application, document = linked("https://github.com/no--body/somewhere")
    assert document.astext() == "Please open an issue or read the paper"
    assert [link["refuri"] for link in document.findall(nodes.reference)] == [
        "https://arxiv.org/abs/2510.23629"
    ]
    assert next(document.findall(nodes.image), None) is None
    options = application.config.html_theme_options
    assert not (options["launch_buttons"])
    assert not (options["use_repository_button"])
    assert not (options["use_issues_button"])


def test_with_an_address_of_its_own_the_book_shows_them() -> None:
    application, document = linked("https://github.com/ada/taskvec-mini")
    assert len(list(document.findall(nodes.reference))) == 3
    assert next(document.findall(nodes.image), None) is not None
    assert application.config.html_theme_options["launch_buttons"]


def test_no_page_names_the_placeholder(site: Path) -> None:
    address = home.current()
    if "--" not in address:
        pytest.skip(f"the book lives at {address}")
    owner = address.removeprefix("https://github.com/")
    naming = [
        path.name
        for path in site.glob("book/*.html")
        if f'href="https://github.com/{owner}' in path.read_text()
    ]
    assert naming == []


# --- without a browser


class Links(HTMLParser):
    """The addresses a page points to and the anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def links_of(path: Path) -> Links:
    parser = Links()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    pages = {path.resolve(): links_of(path) for path in [*site.glob("book/**/*.html"), *site.glob("*.html")]}
    broken = []
    for path, parser in pages.items():
        for link in parser.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in known:
                broken.append(f"{path.name}: {link}")
    assert len(pages) >= len(PAGES)
    assert broken == []


def test_pages_name_no_script_picture_or_style_of_another_site(site: Path) -> None:
    for path in site.glob("book/*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(https?:[^"]+)"', text)
        loaded += re.findall(
            r'<link\b[^>]*\brel="(?:stylesheet|preload|icon)"[^>]*\bhref="(https?:[^"]+)"', text
        )
        loaded += re.findall(r"https://(?:cdn|unpkg)[^\"'\s]*", text)
        assert loaded == [], path.name
