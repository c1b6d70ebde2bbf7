"""What leaves the site: slides, notebooks for a class, PDFs, the README's pictures, the map of chapters."""

from __future__ import annotations

import datetime
import html
import json
import re
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from conftest import CHAPTERS, ROOT
from scripts import execute, pdf, pictures, release, slides, stored, student

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem[:2])


def markdown(text: str, *tags: str) -> Any:
    return nbformat.v4.new_markdown_cell(text, metadata={"tags": list(tags)} if tags else {})


def code(text: str, *tags: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(text, metadata={"tags": list(tags), **metadata})


# --- slides


@each_chapter
def test_a_deck_shows_every_figure_of_its_chapter_with_its_words(path: Path) -> None:
    deck = BeautifulSoup(slides.deck(nbformat.read(path, as_version=4)), "html.parser")
    shown = {image["src"]: image for image in deck.select("img")}
    drawn = 0
    for cell in nbformat.read(path, as_version=4).cells:
        if "solution" in cell.metadata.get("tags", ()):
            continue
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            kinds = [kind for kind in ("image/svg+xml", "image/png") if kind in data]
            if not kinds:
                continue
            drawn += 1
            plain = "".join(data["image/png"]).replace("\n", "") if kinds[0] == "image/png" else None
            found = [image for address, image in shown.items() if plain is None or address.endswith(plain)]
            assert found, f"a picture of {cell.id} is on no slide"
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
            assert alt is None or alt in [image["alt"] for image in found]
    assert len(shown) == drawn >= 3


@each_chapter
def test_a_deck_has_thesis_sections_and_exercises_and_no_solution(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    deck = slides.deck(notebook)
    words = BeautifulSoup(deck, "html.parser").get_text(" ")
    assert stored.thesis(notebook).split(" $")[0][:40] in words
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            assert html.escape(cell.source.splitlines()[0][3:].split(" $")[0][:25], quote=False) in deck
        if "solution" in cell.metadata.get("tags", ()) and cell.cell_type == "code":
            assert max(cell.source.splitlines(), key=len) not in html.unescape(deck)
    assert words.count("Exercise 1") == 1


def test_a_question_stands_before_its_figure_and_the_finding_in_the_notes() -> None:
    image = nbformat.v4.new_output(
        "display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}
    )
    drawing = code("draw()", mystnb={"figure": {"name": "fig-a", "caption": "How $x$ grows."}})
    drawing.outputs = [image]
    notebook = nbformat.v4.new_notebook(
        cells=[
            markdown("# A\n\n> *Thesis.*"),
            markdown("## B\n\n*Said.*\n\nTwo tasks walk, see [there](x.md). Which is faster? Then look."),
            drawing,
            markdown("The first one."),
        ]
    )
    sections = BeautifulSoup(slides.deck(notebook), "html.parser").select("section")
    assert [section["class"] for section in sections] == [["title"], ["section"], ["question"], []]
    assert "Two tasks walk, see there." in sections[2].get_text()
    assert sections[2].select_one(".asked").get_text(strip=True) == "Which is faster?"
    assert sections[3].select_one("figcaption").get_text() == r"How \(x\) grows."
    assert sections[3].select_one("aside.notes").get_text(strip=True) == "The first one."


def test_a_cell_that_asks_becomes_a_slide_with_its_answers() -> None:
    from taskvec_mini.explore import guess

    asking = guess("Up or down?", {"up": "It rises.", "down": "It falls."}, right="up")
    cell = code("guess(...)", "remove-input")
    cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/html": asking._repr_html_()})]
    notebook = nbformat.v4.new_notebook(cells=[markdown("# A\n\n> *Thesis.*"), cell])
    section = BeautifulSoup(slides.deck(notebook), "html.parser").select("section.question")[0]
    assert section.select_one(".asked").get_text() == "Up or down?"
    assert [answer.get_text() for answer in section.select("ol > li")] == ["up", "down"]
    assert "It falls." in section.select_one("aside").get_text()


def test_decks_run_offline_and_nothing_hangs_over_an_edge(browser: Any, tmp_path: Path) -> None:
    decks = slides.build(CHAPTERS, tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    for path in decks:
        page, complaints = context.new_page(), list[str]()
        page.on("console", lambda said, to=complaints: to.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error, to=complaints: to.append(str(error)))
        page.on("requestfailed", lambda request, to=complaints: to.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("() => window.Reveal?.isReady() && window.MathJax?.startup?.promise")
        page.evaluate("() => MathJax.startup.promise")
        over = page.evaluate(
            """() => Array.from({length: Reveal.getTotalSlides()}, (_, at) => {
              Reveal.slide(at);
              const one = Reveal.getCurrentSlide();
              const low = one.getBoundingClientRect().top + 722 * Reveal.getScale();
              const lowest = Math.max(...[...one.querySelectorAll(":scope > :not(.notes)")].map(
                (each) => each.getBoundingClientRect().bottom));
              return lowest > low ? `slide ${at + 1}: ${one.innerText.slice(0, 60)}` : null;
            }).filter((each) => each)"""
        )
        assert (path.stem, over, complaints) == (path.stem, [], [])
        assert page.locator("mjx-merror").count() == 0
        page.close()
    context.close()


# --- for a class


@each_chapter
def test_a_class_gets_no_solution_no_result_and_no_wrong_answers(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    copy = student.without_solutions(notebook, path.stem)
    text = nbformat.writes(copy)
    assert "_solution" not in text
    assert "<summary>Solution" not in text
    assert "colab.research" not in text
    assert all(not cell.get("outputs") and "taskvec_mini" not in cell.metadata for cell in copy.cells)
    solved = [cell for cell in notebook.cells if {"solution", "hide-cell"} & stored.tags(cell)]
    assert len(solved) >= 3
    for cell in solved:
        assert cell.cell_type == "markdown" or json.dumps(max(cell.source.splitlines(), key=len)) not in text
    assert len(copy.cells) == len(notebook.cells) - len(solved)
    answers = student.answers(notebook)
    for cell in solved:
        assert cell.source in answers
    assert notebook == nbformat.read(path, as_version=4), "the chapter itself stays as it is"


def test_a_cell_that_needs_a_solution_is_named() -> None:
    cells = [code("def f_solution(): ...", "solution"), code("f_solution()")]
    with pytest.raises(student.LeftoverError, match="01_a, cell 0 calls f_solution"):
        student.without_solutions(nbformat.v4.new_notebook(cells=cells), "01_a")


def test_a_class_can_run_a_chapter_to_its_end_and_is_told_kindly(tmp_path: Path) -> None:
    """The quickest chapter with empty cells; tests/chapter_checks.py tries the checks of all."""
    seconds = execute.read_record(ROOT / "book" / "recorded" / "execution.json")["chapters"]
    empty = [
        path for path in CHAPTERS if any("stub" in stored.tags(cell) for cell in stored.read(path).cells)
    ]
    path = min(empty, key=lambda each: seconds[each.stem])
    (made,) = student.build([path], tmp_path / "student", tmp_path / "answers")
    execute.kernel_environment()
    run, _ = execute.execute(made)
    said = ["".join(out.get("text", "")) for cell in run.cells for out in cell.get("outputs", ())]
    stubs = [cell for cell in run.cells if "stub" in stored.tags(cell) and "check" in cell.source]
    assert len(stubs) >= 2
    assert sum(text.startswith("not written yet") for text in said) == len(stubs)
    assert not [text for text in said if text.startswith("correct")]


# --- on paper


PRINTED = [*CHAPTERS[:2], ROOT / "book/notation", ROOT / "book/teach/cheat_sheet", ROOT / "book/references"]


@pytest.fixture(scope="module")
def contents() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def whole_book(site: Path, contents: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages joined, as they would be printed, in a copy of the site."""
    folder = tmp_path_factory.mktemp("paper")
    book, _, _ = pdf.joined_book(Path(shutil.copytree(site, folder / "site")), contents)
    joined = folder / "site/book/joined.html"
    joined.write_text(pdf.whole(book, pdf.contents_of(book, {})), encoding="utf-8")
    return joined


@pytest.fixture(scope="module")
def paper(whole_book: Path, contents: dict[str, Any], browser: Any) -> Path:
    """The folder of the PDFs, of some pages: the whole book takes a minute until its page numbers agree."""
    site = whole_book.parents[1]
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PRINTED}
    parts = [
        part | {"chapters": [each for each in part["chapters"] if each["file"] in names]}
        for part in contents["parts"]
    ]
    pdf.print_book(site, contents | {"parts": parts}, site.parent, browser=browser)
    return site.parent


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_the_pdf_has_the_book_with_an_outline(paper: Path) -> None:
    printed = (paper / "book.pdf").read_bytes()
    titles = [stored.title(nbformat.read(path, as_version=4)) for path in PRINTED[:2]]
    outline = [found.decode("latin-1") for found in re.findall(rb"/Title \(([^)]*)\)", printed)]
    assert [title for title in titles if title not in outline] == []
    assert len(pdf.PAGE_OBJECT.findall(printed)) > 20
    assert f"/Count {len(pdf.PAGE_OBJECT.findall(printed))}".encode() in printed


def test_every_link_inside_the_pdf_leads_to_a_place(paper: Path, whole_book: Path) -> None:
    printed = (paper / "book.pdf").read_bytes()
    named = {
        name.decode("latin-1") for name in re.findall(rb"/Dest /([^\s/>\]]+)", printed)
    }  # links that lead to a name
    assert len(named) > 30
    places = {name.decode("latin-1") for name, _ in pdf.PLACE.findall(printed)}
    assert named <= places
    soup = read(whole_book)
    assert len(soup.select(".paper-contents a")) > 100
    inside = {link["href"][1:] for link in soup.select("a[href^='#']")}
    assert inside <= {each["id"] for each in soup.find_all(id=True)}
    assert not [link["href"] for link in soup.select("a[href]") if ".html" in link["href"].split("#")[0][-5:]
                and "://" not in link["href"]]  # fmt: skip


def test_the_contents_name_the_page_of_every_section(paper: Path) -> None:
    numbers = pdf.places((paper / "book.pdf").read_bytes())
    lines = read(paper / "site/book/whole_book.html").select(".paper-contents a")
    assert len(lines) > 30
    assert [line["href"] for line in lines if line.b.get_text() != str(numbers[line["href"][1:]])] == []
    pages = [int(line.b.get_text()) for line in lines]
    assert pages == sorted(pages)
    assert pages[-1] > 20


def test_the_places_of_a_pdf_are_read_in_the_order_of_its_pages() -> None:
    printed = (
        b"%PDF-1.4\n9 0 obj\n<</Type /Page\n>>\nendobj\n4 0 obj\n<</Type /Page\n>>\nendobj\n"
        b"5 0 obj\n<</Type /Pages>>\nendobj\n6 0 obj\n<</a--b [4 0 R /XYZ 1 2 0]\n/c#20d [9 0 R /XYZ 1 2 0]>>"
    )
    assert pdf.places(printed) == {"a--b": 2, "c d": 1}


def test_print_shows_everything(whole_book: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 658, "height": 1000})  # the width between an A4 page's margins
    page.goto(whole_book.as_uri())
    page.emulate_media(media="print")
    page.wait_for_function(pdf.READY, timeout=120_000)
    assert page.locator("mjx-merror").count() == 0
    assert page.locator("details:not([open])").count() == 0
    closed = page.evaluate(
        """() => [...document.querySelectorAll("details > :not(summary)")].filter(
          (each) => !each.offsetHeight && each.textContent.trim() && each.tagName !== "STYLE").length"""
    )
    assert closed == 0
    cut = page.evaluate(
        """() => [...document.querySelectorAll("img, pre, table, .explore-chart svg")].filter(
          (each) => each.getBoundingClientRect().right > document.documentElement.clientWidth + 2 &&
            each.getBoundingClientRect().width).map((each) => each.closest("article").id + ": "
              + each.outerHTML.slice(0, 120))"""
    )
    assert cut == []
    page.close()


def test_the_cheat_sheet_has_two_pages(paper: Path, browser: Any) -> None:
    assert len(pdf.PAGE_OBJECT.findall((paper / "cheat_sheet.pdf").read_bytes())) == 2
    page = browser.new_page()
    page.goto((paper / "site/book/teach/cheat_sheet.html").as_uri())  # a reader's own print of the page
    page.wait_for_function(pdf.READY)
    assert len(pdf.PAGE_OBJECT.findall(page.pdf(prefer_css_page_size=True))) == 2
    page.close()


# --- pictures, map, version


def test_the_pictures_are_the_chapters_own() -> None:
    """`make pictures` draws them anew."""
    files = pictures.two_skills(CHAPTERS)
    assert {path.name for path in pictures.IMAGES.glob("two_skills*")} == set(files)
    for name, content in files.items():
        assert (pictures.IMAGES / name).read_bytes() == content
    assert next(iter(files)) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "layout"), [("chapter_map.svg", pictures.DESK), ("chapter_map_narrow.svg", pictures.PHONE)]
)
def test_the_map_draws_each_chapter_behind_what_it_needs(file: str, layout: pictures.Layout) -> None:
    drawn = (pictures.IMAGES / file).read_text(encoding="utf-8")
    assert drawn == pictures.chapter_map(CHAPTERS, layout)
    needed = pictures.needs(CHAPTERS)
    assert drawn.count("marker-end") == sum(map(len, needed.values())) >= len(CHAPTERS) - 1
    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)"', drawn)
    corner = {path.stem: tuple(map(int, box)) for path, box in zip(CHAPTERS, boxes, strict=True)}
    assert len(set(corner.values())) == len(CHAPTERS)
    for path in CHAPTERS:
        asked = stored.needs(stored.read(path))
        assert set(needed[path.stem]) <= set(asked)
        for each in asked:  # those that are not drawn, because another need has them already, as well
            assert corner[each][layout.falls] < corner[path.stem][layout.falls]
    words = re.findall(r">([^<>]+)</text>", drawn)
    room = layout.width / (0.57 * layout.letters)  # letters of DejaVu Sans, on average
    assert max(map(len, words)) <= room


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_map_says_how_long_a_chapter_takes(page: str) -> None:
    """Up to ten minutes: reading and the exercises' own minutes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in CHAPTERS:
        row = re.search(
            rf"^\| \d+ \| \[(.+?)\]\((?:book/)?{path.name}\).*?\| (\d+) \| \w+ \|$", text, re.MULTILINE
        )
        assert row is not None, path.name
        notebook = stored.read(path)
        assert row.group(1) == stored.title(notebook)
        assert abs(int(row.group(2)) - stored.minutes(notebook)) <= 10, path.name


def test_needs_minutes_and_exercises_are_read_from_the_cells() -> None:
    first = markdown("# A\n\n> *It needs three.*\n\nruns on a CPU in 5 s · needs [chapter 1](01_a.ipynb)")
    exercise = markdown("**Exercise 1 (10 minutes, a picture). See $x$.** Draw it.\n\n" + "word " * 740)
    project = markdown("**Exercise 2 (an afternoon, a project). Go on.** Begin.")
    notebook = nbformat.v4.new_notebook(cells=[first, exercise, project])
    assert stored.needs(notebook) == ["01_a"]
    assert [each.minutes for cell in notebook.cells for each in stored.exercises(cell)] == [10, 0]
    assert stored.minutes(notebook) == 15


def test_version_date_and_change_log_agree() -> None:
    text = (ROOT / "book" / "change_log.md").read_text(encoding="utf-8")
    newest = re.search(r"^## Version (\S+) \((\S+)\)$", text, re.MULTILINE)
    assert newest is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest.group(1) == project["version"] == cited["version"] == pdf.edition()["version"]
    assert newest.group(2) == str(cited["date-released"]) == pdf.edition()["date"]
    assert datetime.date.fromisoformat(newest.group(2))


def test_a_release_has_every_part_and_no_solutions(tmp_path: Path) -> None:
    for name in (
        "pdf/book.pdf",
        "pdf/cheat_sheet.pdf",
        "slides/01.html",
        "student/01.ipynb",
        "answers/answers.md",
    ):
        (tmp_path / "_build" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "_build" / name).write_text(name, encoding="utf-8")
    made = release.gather(tmp_path / "_build", tmp_path / "out", "1.2")
    assert sorted(path.name for path in made) == [
        "taskvec-mini-1.2-book.pdf", "taskvec-mini-1.2-cheat_sheet.pdf",
        "taskvec-mini-1.2-slides.zip", "taskvec-mini-1.2-student.zip",
    ]  # fmt: skip
    assert zipfile.ZipFile(tmp_path / "out" / "taskvec-mini-1.2-student.zip").namelist() == ["01.ipynb"]
    (tmp_path / "_build" / "pdf" / "book.pdf").unlink()
    with pytest.raises(FileNotFoundError, match=r"book\.pdf is missing"):
        release.gather(tmp_path / "_build", tmp_path / "out", "1.2")
