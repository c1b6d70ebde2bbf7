"""Sliders: the static chart holds what the function returns, and the live one calls it; bad input says so."""

import base64
import csv
import html.parser
import io
import itertools
import json
import math
import re
import sys
import types

import altair
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from taskvec_mini.explore import VEGA_URLS, Bars, Lines, Range, Reference, explore, rows_on_grid, sliders
from taskvec_mini.explore import charts as charts_
from taskvec_mini.explore import live as live_
from taskvec_mini.explore import static as static_
from taskvec_mini.explore.charts import summary
from taskvec_mini.explore.picture import draw, picture
from taskvec_mini.figures.style import COLOURS

RANGES = {
    "learning_rate": Range.log(0.01, 1, count=5, default=0.1, label="learning rate η"),
    "epochs": Range.steps([1, 3, 4], default=3, unit="epochs"),
}


def descend(learning_rate, epochs):
    """Gradient descent on x²/2 from x = 2, beside the straight line along the first gradient."""
    steps = range(epochs + 1)
    curve = [{"epoch": k, "x": 2 * (1 - learning_rate) ** k, "what": "descent"} for k in steps]
    return curve + [{"epoch": k, "x": 2 - 2 * learning_rate * k, "what": "straight"} for k in steps]


def accuracies(mirrored, shuffled):
    return [
        {"task": "mirrored", "accuracy": 1 / (1 + math.exp(-mirrored)), "model": "merged"},
        {"task": "shuffled", "accuracy": 1 / (1 + math.exp(-shuffled)), "model": "merged"},
        {"task": "mirrored", "accuracy": 0.5, "model": "pretrained"},
        {"task": "shuffled", "accuracy": 0.25, "model": "pretrained"},
    ]


def two_panels(learning_rate, epochs):
    rows = descend(learning_rate, epochs)
    return {
        "path": rows,
        "end": [{"name": row["what"], "x": row["x"]} for row in rows if row["epoch"] == epochs],
    }


LINES = Lines("epoch", "x", series="what")
BARS = Bars("task", "accuracy", series="model", y_domain=(0, 1), references=(Reference("chance", y=0.5),))
COEFFICIENT = Range.linear(-1, 1, step=0.5, default=0.5)
WORDS = {"question": "When do the two part?", "description": "A curve and a line."}


def static(compute=descend, ranges=RANGES, charts=LINES, **words):
    return explore(compute, ranges=ranges, charts=charts, **{**WORDS, **words})


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "live")
    return static


@pytest.fixture(autouse=True)
def _static_unless_told(monkeypatch):
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "static")


# ranges


def test_stops_of_a_range():
    assert Range.linear(1, 10, step=3, default=4).values == (1, 4, 7, 10)
    assert all(isinstance(stop, int) for stop in Range.linear(1, 10, step=3, default=4).values)
    assert Range.linear(0, 0.3, step=0.1, default=0).values == (
        0.0,
        0.1,
        0.2,
        0.3,
    )  # 0.3, not 0.30000000000000004
    assert Range.linear(-1, 1, step=0.125, default=0).values == tuple(np.linspace(-1, 1, 17))
    stops = Range.log(1e-4, 1, count=9, default=0.01).values
    assert stops == pytest.approx(np.logspace(-4, 0, 9), rel=2e-3)
    assert all(float(f"{stop:.3g}") == stop for stop in stops)  # the label is the value
    assert Range.steps(["tanh", "relu"], default="relu").values == ("tanh", "relu")


def test_the_text_of_a_stop():
    assert Range.linear(-1, 1, step=0.5, default=0).text(-0.5) == "−0.5"
    assert RANGES["epochs"].text(3) == "3 epochs"
    assert Range.steps([0.5, 1], default=1, number_format=".2f").text(0.5) == "0.50"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range.steps([], default=1), "needs two values or more, got []"),
        (lambda: Range.steps([3, 1], default=1), "must rise and not repeat"),
        (lambda: Range.steps(["a", "a"], default="a"), "must rise and not repeat"),
        (lambda: Range.steps([1, math.inf], default=1), "must be finite"),
        (lambda: Range.steps([1, 2, 5], default=4), "4 is not a stop .* the nearest is 5"),
        (lambda: Range.log(0.01, 1, count=3, default=5), "5 is not a stop .* the nearest is 1.0"),
        (lambda: Range.steps(["tanh", "relu"], default="tan"), "'tan' is not a stop .* nearest is 'tanh'"),
        (lambda: Range.log(0, 1, count=3, default=1), "start must be above 0"),
        (lambda: Range.log(1, 10, count=1, default=1), "count must be at least 2"),
        (lambda: Range.log(1, 1.001, count=9, default=1), "must rise and not repeat"),
        (lambda: Range.linear(0, 1, step=0.3, default=0), "steps of 0.3 do not lead from 0 to 1"),
        (lambda: Range.linear(1, 0, step=0.5, default=0), "steps of 0.5 do not lead from 1 to 0"),
        (lambda: Range.linear(0, 1, step=0, default=0), "step must be above 0"),
    ],
)
def test_bad_ranges_say_so(make, message):
    with pytest.raises(ValueError, match=message.replace("[]", r"\[\]")):
        make()


# rows


def test_rows_on_the_grid_are_what_the_function_returns_at_each_position():
    grid = rows_on_grid(descend, RANGES)
    positions = itertools.product(RANGES["learning_rate"].values, RANGES["epochs"].values)
    assert list(grid) == list(positions)
    for (learning_rate, epochs), panels in grid.items():
        assert panels == {"chart": descend(learning_rate=learning_rate, epochs=epochs)}
    assert set(rows_on_grid(two_panels, RANGES)[0.1, 3]) == {"path", "end"}


def test_numbers_of_torch_and_numpy_become_plain():
    rows = [{"a": torch.tensor(1.5), "b": np.float32(0.5), "c": np.int64(3), "d": "word"}]
    found = rows_on_grid(lambda n: rows, {"n": Range.steps([1, 2], default=1)})[1,]["chart"][0]
    assert found == {"a": 1.5, "b": 0.5, "c": 3, "d": "word"}
    assert [type(value) for value in found.values()] == [float, float, int, str]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows came back"),
        ([{"x": 1}, {"x": 1, "y": 2}], "row 1 and row 0 differ in the columns y"),
        ([{"x": math.nan}], "row 0, x: nan cannot be drawn"),
        ([{"x": torch.tensor(math.inf)}], "row 0, x: inf cannot be drawn"),
        ([{"x": True}], "row 0, x: expected a number or a word, got True"),
        ([{"x": None}], "expected a number or a word, got None"),
        (None, "expected a list of rows, each a dictionary, got NoneType"),
        ([1, 2], "expected a list of rows"),
        ({"left": [{"x": 1}], "right": []}, "panel 'right': no rows"),
    ],
)
def test_untidy_rows_are_refused_with_the_parameters_that_led_there(rows, message):
    def odd(n):
        return rows if n == 2 else [{"x": 1}]

    with pytest.raises(RuntimeError, match=rf"odd\(n=2\).*{message}"):
        rows_on_grid(odd, {"n": Range.steps([1, 2], default=1)})


def test_a_function_that_fails_names_its_parameters_and_keeps_its_cause():
    with pytest.raises(
        RuntimeError, match=r"failing\(n=2\) failed: ZeroDivisionError: division by zero"
    ) as caught:
        rows_on_grid(failing, {"n": Range.steps([1, 2, 3], default=1)})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def failing(n):
    return [{"task": "a", "accuracy": 1 / (2 - n)}]


def test_parameters_must_fit_the_function():
    with pytest.raises(TypeError, match="does not take the parameters epoch: missing a required argument"):
        rows_on_grid(descend, {"epoch": RANGES["epochs"]})
    with pytest.raises(ValueError, match="ranges is empty"):
        rows_on_grid(descend, {})
    with pytest.raises(TypeError, match=r"ranges\['epochs'\] must be a Range, got \[1, 2\]"):
        static(ranges={**RANGES, "epochs": [1, 2]})
    with pytest.raises(TypeError, match="compute must be a function"):
        static(compute=3)


# charts


@pytest.mark.parametrize("mode", ["static", "live"])
@pytest.mark.parametrize(
    ("charts", "message"),
    [
        (Lines("epochs", "x"), "no column 'epochs': did you mean 'epoch'?"),
        (Lines("epoch", "qqq"), "no column 'qqq': the rows have epoch, x, what"),
        (Lines("epoch", "what"), "needs numbers in the column 'what', got 'descent'"),
        (Lines("epoch", "x", x_scale="log"), "'epoch' on a log scale but got 0"),
        ({"left": LINES}, "the charts are named left but the rows chart"),
        ({"a": LINES, "b": LINES, "c": LINES}, "got 3 charts"),
        ({}, "got 0 charts"),
    ],
)
def test_charts_that_do_not_fit_the_rows_say_so_at_once(charts, message, mode, monkeypatch):
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", mode)
    with pytest.raises(ValueError, match=re.escape(message)):
        static(charts=charts)


def many(n):
    return [{"x": 1, "y": n, "s": f"{n} {i}"} for i in range(4)]


def test_more_bad_input():
    with pytest.raises(TypeError, match=r"must be Lines\(...\) or Bars\(...\), got 'x'"):
        static(charts="x")
    with pytest.raises(ValueError, match="question is empty"):
        static(question=" ")
    with pytest.raises(ValueError, match="names 8 series but a chart can tell 6 apart"):
        static(many, {"n": Range.steps([1, 2], default=1)}, Lines("x", "y", series="s"))
    for wrong in ({}, {"x": 1.0, "y": 1.0}):
        with pytest.raises(ValueError, match="the reference 'chance' needs y="):
            Reference("chance", **wrong)
    with pytest.raises(ValueError, match="must be finite"):
        Reference("chance", y=math.nan)


def test_a_frame_has_room_for_every_position_and_keeps_the_series_in_order():
    rows = [row for panels in rows_on_grid(descend, RANGES).values() for row in panels["chart"]]
    frame = charts_.frames({"chart": LINES}, {"chart": rows})["chart"]
    assert frame.series == ("descent", "straight")
    low, high = frame.y_domain
    assert low < min(row["x"] for row in rows) < max(row["x"] for row in rows) < high
    assert high - low == pytest.approx(1.08 * 8)  # from 2 − 2 · 4 to 2, and 4% on either side
    given = charts_.frames({"chart": Lines("epoch", "x", y_domain=(0, 9))}, {"chart": rows})["chart"]
    assert given.y_domain == (0, 9)


def test_a_log_frame_is_padded_by_a_factor():
    rows = [{"x": 1, "y": 0.01}, {"x": 2, "y": 100.0}]
    low, high = charts_.frames({"c": Lines("x", "y", y_scale="log")}, {"c": rows})["c"].y_domain
    assert math.log10(low) == pytest.approx(-2 - 0.16)
    assert math.log10(high) == pytest.approx(2 + 0.16)


def test_equal_units_are_equal_in_pixels():
    rows = [{"x": 0.0, "y": 0.0}, {"x": 10.0, "y": 1.0}]
    for names in (["a"], ["a", "b"]):
        many = {name: Lines("x", "y", equal=True) for name in names}
        frame = charts_.frames(many, dict.fromkeys(names, rows))["a"]
        width, height = static_size(len(names))
        assert (frame.x_domain[1] - frame.x_domain[0]) / width == pytest.approx(
            (frame.y_domain[1] - frame.y_domain[0]) / height
        )
        assert frame.x_domain == pytest.approx((-0.4, 10.4))  # the longer side is no wider than it need be


def static_size(count):
    from taskvec_mini.explore.spec import SIZE

    return SIZE[count]


def test_the_words_for_those_who_do_not_see_the_chart():
    assert summary({"chart": LINES}, {"chart": descend(0.5, 2)}) == (
        "x, descent: from 2 at epoch 0 to 0.5 at epoch 2. x, straight: from 2 at epoch 0 to 0 at epoch 2."
    )
    rows = [{"task": "digits", "accuracy": 0.912}, {"task": "control", "accuracy": -0.5}]
    assert (
        summary({"chart": Bars("task", "accuracy")}, {"chart": rows})
        == "accuracy: digits 0.91, control −0.50."
    )


# the picture


def test_the_picture_draws_the_rows():
    panels = two_panels(0.1, 3)
    named = {"path": LINES, "end": Bars("name", "x", references=(Reference("start", y=2.0),))}
    left, right = draw(named, charts_.frames(named, panels), panels).axes
    for line, name in zip(left.lines, ("descent", "straight"), strict=True):
        own = [(row["epoch"], row["x"]) for row in panels["path"] if row["what"] == name]
        assert list(zip(*line.get_data(), strict=True)) == own
    assert [line.get_color() for line in left.lines] == list(COLOURS[:2])
    assert (
        len({line.get_linestyle() for line in left.lines})
        == len({line.get_marker() for line in left.lines})
        == 2
    )
    assert [bar.get_height() for bar in right.patches] == [row["x"] for row in panels["end"]]
    assert {text.get_text() for text in right.texts} == {"1.46", "1.40", "start"}
    assert plt.get_fignums() == []  # pyplot would show the figure a second time


def test_grouped_bars_stand_side_by_side_and_differ_in_more_than_colour():
    panels = {"chart": accuracies(1.0, 0.0)}
    (axes,) = draw({"chart": BARS}, charts_.frames({"chart": BARS}, panels), panels).axes
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert len(spans) == 4
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert len({bar.get_facecolor()[3] for bar in axes.patches}) == 2


# the static chart


def spec_rows(data):
    return list(csv.DictReader(io.StringIO(data["values"])))


@pytest.mark.parametrize(
    "charts", [LINES, Lines("epoch", "x", series="what", points=False), Lines("epoch", "x")]
)
def test_every_position_of_the_static_chart_holds_the_functions_rows(charts):
    spec = static(charts=charts).spec
    stored = spec_rows(spec["data"])
    for at, panels in enumerate(rows_on_grid(descend, RANGES).values()):
        mine = [row for row in stored if int(row["at"]) == at]
        assert [int(row["i"]) for row in mine] == list(range(len(panels["chart"])))
        for row, true in zip(mine, panels["chart"], strict=True):
            assert [float(row["x"]), float(row["y"])] == pytest.approx([true["epoch"], true["x"]], rel=1e-4)
            assert row["series"] == (true["what"] if charts.series else "")
    assert len(stored) == sum(len(panels["chart"]) for panels in rows_on_grid(descend, RANGES).values())


def test_two_panels_have_a_table_each_and_words_stay_words():
    left, right = static(two_panels, charts={"path": LINES, "end": Bars("name", "x")}).spec["hconcat"]
    assert len(spec_rows(left["data"])) == sum(2 * (k + 1) for k in (1, 3, 4)) * 5
    assert {row["x"] for row in spec_rows(right["data"])} == {"descent", "straight"}
    assert right["data"]["format"]["parse"]["x"] == "string"
    filters = [
        {json.dumps(layer.get("transform")) for layer in view["layer"] if "data" not in layer}
        for view in (left, right)
    ]
    assert filters[0] == filters[1]
    assert len(filters[0]) == 3  # here, the last position, the start


@pytest.mark.parametrize("sizes", [(4,), (2, 5), (3, 2, 4)])
def test_the_filter_finds_the_position_of_all_sliders_together(sizes):
    ranges = {f"p{i}": Range.steps(range(size), default=1) for i, size in enumerate(sizes)}
    spec = static(lambda **values: [{"x": 0, "y": 0}], ranges, Lines("x", "y")).spec
    expression = spec["layer"][-1]["transform"][0]["filter"].removeprefix("datum.at == ")
    places = list(itertools.product(*(range(size) for size in sizes)))
    for at, place in enumerate(places):
        assert eval(expression, {f"position{i}": stop for i, stop in enumerate(place)}) == at
    start = places.index((1,) * len(sizes))
    assert [(param["name"], param["value"]) for param in spec["params"]] == [
        *((f"position{i}", 1) for i in range(len(sizes))),
        ("last", -1),
        ("start", start),
    ]


@pytest.mark.parametrize("chart", [Lines("x", "y"), Lines("x", "y", joined=False), Bars("x", "y")])
def test_ghosts_are_the_same_marks_of_two_more_positions_without_a_legend(chart):
    ranges = {"n": Range.steps([1, 2], default=1)}
    layers = static(lambda n: [{"x": 1 if isinstance(chart, Lines) else "a", "y": n}], ranges, chart).spec[
        "layer"
    ]
    ghosts = {layer["transform"][0]["filter"]: layer for layer in layers if "ghost" in layer.get("name", "")}
    assert ghosts.keys() == {"datum.at == start", "datum.at == last"}
    (mark,) = {layer["mark"]["type"] for layer in ghosts.values()}
    (own,) = [layer for layer in layers if layer not in ghosts.values() and layer["mark"]["type"] == mark]
    for ghost in ghosts.values():
        assert {axis: ghost["encoding"][axis] for axis in "xy"} == {
            axis: own["encoding"][axis] for axis in "xy"
        }
        assert not {"color", "fill", "stroke", "shape"} & ghost["encoding"].keys()
    assert len({json.dumps(ghost["mark"]["strokeDash"]) for ghost in ghosts.values()}) == 2


@pytest.mark.parametrize("chart", [LINES, Lines("epoch", "x", joined=False), Bars("what", "x")])
def test_the_picture_draws_ghosts_of_other_positions_below_or_hollow(chart):
    here, there = descend(0.1, 1)[-2:], descend(0.5, 1)[-2:]
    named = {"chart": chart}
    frames = charts_.frames(named, {"chart": here + there})
    (plain,) = draw(named, frames, {"chart": here}).axes
    (haunted,) = draw(named, frames, {"chart": here}, ghosts={"last": {"chart": there}}).axes

    def marks(axes):
        return [*axes.lines, *axes.patches, *axes.collections]

    extra = [mark for mark in marks(haunted) if mark.get_alpha() == 0.4]
    assert len(marks(haunted)) == len(marks(plain)) + len(extra) > len(marks(plain))
    if isinstance(chart, Bars):
        assert sorted(bar.get_height() for bar in extra) == sorted(row["x"] for row in there)
        assert not any(bar.get_fill() for bar in extra)


def test_the_specification_is_valid_vega_lite_and_leaves_the_ground_and_the_text_to_the_page():
    for chart in (
        static(),
        static(accuracies, {"mirrored": COEFFICIENT, "shuffled": COEFFICIENT}, BARS),
        static(two_panels, charts={"path": Lines("epoch", "x", equal=True), "end": Bars("name", "x")}),
        static(charts=Lines("epoch", "x", joined=False, references=(Reference("here", x=2.0),), title="t")),
    ):
        altair.Chart.from_dict(chart.spec, validate=True)
        assert chart.spec["config"]["background"] == "transparent"
        assert chart.spec["config"]["axis"]["labelColor"] == "currentColor"
        assert chart.spec["description"] == WORDS["description"]


def test_series_keep_their_looks_and_the_axes_their_ends_wherever_the_sliders_stand():
    def appearing(n):
        return [{"x": 1, "y": n, "s": name} for name in ("late", "early")[2 - n :]]

    ranges = {"n": Range.steps([1, 2], default=1)}
    points = static(appearing, ranges, Lines("x", "y", series="s")).spec["layer"][-1]["encoding"]
    assert points["color"]["scale"] == {"domain": ["early", "late"], "range": list(COLOURS[:2])}
    assert points["shape"]["scale"]["domain"] == ["early", "late"]
    assert len(set(points["shape"]["scale"]["range"])) == 2
    assert points["y"]["scale"]["domain"] == pytest.approx([0.96, 2.04])


class Outline(html.parser.HTMLParser):
    """Start tags with their attributes, and the text of each script and paragraph."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag in ("script", "p"):
            self.texts.append("")

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open in ("script", "p"):
            self.texts[-1] += data

    def of(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def facts(chart):
    outline = Outline(chart.html)
    return json.loads(next(text for text in outline.texts if text.startswith("{")))


def test_the_html_stands_alone():
    """A question, a picture with words for it, and sliders for where scripts run: nothing else is fetched."""
    chart = static(say=lambda panels: f"{len(panels['chart'])} rows < 99.")
    outline = Outline(chart.html)
    (picture_,) = outline.of("img")
    assert picture_["alt"] == WORDS["description"]
    assert base64.b64decode(picture_["src"].removeprefix("data:image/png;base64,")) == chart.png
    root = outline.of("div")[0]
    assert root["aria-labelledby"] in {attrs.get("id") for attrs in outline.of("p")}
    assert "Drawn for learning rate η = 0.1; epochs = 3 epochs." in outline.texts
    assert "8 rows < 99." in outline.texts
    assert [found["says"] for found in [facts(chart)]] == [[f"{2 * k + 2} rows < 99." for k in (1, 3, 4)] * 5]
    addresses = re.findall(r"https?://[^\"'\s\\]+", chart.html)
    assert set(addresses) == {*VEGA_URLS, chart.spec["$schema"]}
    assert not re.search(
        r"\bfetch\(|type=.?module|\bimport\b", chart.html
    )  # these fail on a page opened as a file


def test_the_script_knows_each_slider():
    sliders = facts(static())["sliders"]
    assert [slider["name"] for slider in sliders] == ["learning_rate", "epochs"]
    assert sliders[0] == {
        "name": "learning_rate", "label": "learning rate η", "start": 2,
        "texts": ["0.01", "0.0316", "0.1", "0.316", "1"],
    }  # fmt: skip
    assert sliders[1]["texts"] == ["1 epochs", "3 epochs", "4 epochs"]


def test_the_urls_are_pinned_to_the_vega_lite_that_altair_writes_for():
    assert [re.search(r"npm/([\w-]+)@\d+\.\d+\.\d+/", url).group(1) for url in VEGA_URLS] == [
        "vega", "vega-lite", "vega-embed",
    ]  # fmt: skip
    major = altair.SCHEMA_VERSION.lstrip("v").split(".")[0]
    if major == "6":  # altair 5, as on Colab, writes for version 5, which version 6 reads too
        assert f"vega-lite@{altair.SCHEMA_VERSION.lstrip('v')}/" in VEGA_URLS[1]
    text = static().html
    assert [text.index(url) for url in VEGA_URLS] == sorted(text.index(url) for url in VEGA_URLS)


def test_the_same_chart_has_the_same_bytes_and_another_chart_another_id():
    def identity(chart):
        return Outline(chart.html).of("div")[0]["id"]

    assert static().html == static().html
    assert static().png == static().png
    ids = {
        identity(chart) for chart in (static(), static(question="Why?"), static(charts=Lines("epoch", "x")))
    }
    assert len(ids) == 3


def test_no_text_can_break_out_of_the_page():
    evil = '</script><img src=x onerror="alert(1)">'
    chart = static(
        lambda n: [{"x": 1, "y": n, "s": evil + str(i)} for i in range(2)],
        {"n": Range.steps([1, 2], default=1, label=evil, unit=evil)},
        Lines("x", "y", series="s", title=evil),
        question=evil,
        description=evil,
        say=lambda panels: evil,
    )
    outline = Outline(chart.html)
    assert [attrs["alt"] for attrs in outline.of("img")] == [evil]
    assert len(outline.of("script")) == 2
    assert facts(chart)["says"] == [evil, evil]
    assert facts(chart)["sliders"][0]["label"] == evil


def test_the_bundle_has_html_a_picture_and_words():
    chart = static()
    bundle = chart._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert bundle["text/plain"] == "[chart with sliders] When do the two part?"
    assert plt.imread(io.BytesIO(bundle["image/png"])).shape[1] == 696


def test_a_chart_that_would_weigh_too_much_is_refused(monkeypatch):
    assert len(static().html) < static_.LARGEST_PAGE <= 1_000_000
    monkeypatch.setattr(static_, "LARGEST_PAGE", 20_000)
    with pytest.raises(
        ValueError, match=r"takes \d\d kB for 15 positions of the sliders, and may take 20 kB"
    ):
        static()


# the live chart


def shown(chart):
    return re.search(r'src="data:image/png;base64,([^"]+)"', chart.picture.value).group(1)


def test_live_sliders_recompute_and_also_between_the_stops(live):
    calls = []

    def counted(learning_rate, epochs):
        calls.append((learning_rate, epochs))
        return descend(learning_rate, epochs)

    chart = live(counted)
    rate, epochs = chart.sliders.values()
    assert (type(rate), type(epochs)) == (ipywidgets.FloatLogSlider, ipywidgets.IntSlider)
    assert chart.parameters == {"learning_rate": pytest.approx(0.1), "epochs": 3}
    assert not rate.continuous_update
    before, calls[:] = shown(chart), []
    rate.value = 0.2  # no stop
    epochs.value = 2  # no stop either
    assert calls == [(0.2, 3), (0.2, 2)]
    named, rows = {"chart": LINES}, {"chart": descend(0.1, 3) + descend(0.2, 3) + descend(0.2, 2)}
    ghosts = {"start": {"chart": descend(0.1, 3)}, "last": {"chart": descend(0.2, 3)}}
    expected = picture(named, charts_.frames(named, rows), {"chart": descend(0.2, 2)}, ghosts=ghosts)
    assert base64.b64decode(shown(chart)) == expected != base64.b64decode(before)
    assert "x, descent: from 2 at epoch 0 to 1.28 at epoch 2." in chart.picture.value


@pytest.mark.parametrize("position", rows_on_grid(descend, RANGES))
def test_the_live_chart_at_a_stop_shows_the_rows_of_the_static_one(live, position):
    chart = live()
    chart.sliders["learning_rate"].value, chart.sliders["epochs"].value = position
    words = summary({"chart": LINES}, rows_on_grid(descend, RANGES)[position])
    assert words in chart.picture.value


def test_words_and_fractions_get_the_sliders_that_suit_them(live):
    ranges = {
        "activation": Range.steps(["tanh", "relu"], default="relu"),
        "share": Range.linear(0, 1, step=0.25, default=0.5, unit="of all"),
        "width": Range.steps([16, 64], default=64),
    }
    chart = live(lambda activation, share, width: [{"task": activation, "y": share * width}], ranges,
                 Bars("task", "y"))  # fmt: skip
    word, fraction, whole = chart.sliders.values()
    assert isinstance(word, ipywidgets.SelectionSlider)
    assert isinstance(fraction, ipywidgets.FloatSlider)
    assert fraction.step == pytest.approx(0.025)
    assert fraction.description == "share (of all)"
    assert isinstance(whole, ipywidgets.IntSlider)
    word.value = "tanh"
    assert "tanh 32.00" in chart.picture.value


def test_reset_goes_back_with_a_single_computation(live):
    calls = []

    def counted(learning_rate, epochs):
        calls.append((learning_rate, epochs))
        return descend(learning_rate, epochs)

    chart = live(counted)
    chart.sliders["learning_rate"].value, chart.sliders["epochs"].value = 0.3, 4
    calls.clear()
    chart.reset_button.click()
    assert calls == [(pytest.approx(0.1), 3)]
    assert chart.parameters == {"learning_rate": pytest.approx(0.1), "epochs": 3}
    chart.sliders["epochs"].value = 1
    assert len(calls) == 2  # the sliders still report


def test_an_error_is_shown_and_the_next_position_clears_it(live):
    chart = live(failing, {"n": Range.steps([1, 2, 4], default=1)}, Bars("task", "accuracy"))
    assert chart.message.value == ""
    chart.sliders["n"].value = 2
    assert 'role="alert"' in chart.message.value
    assert "<code>failing(n=2)</code><br>ZeroDivisionError: division by zero" in chart.message.value
    assert "Traceback" in chart.message.value
    assert chart.picture.value == ""
    assert chart.state.value == ""
    assert not chart.reset_button.disabled
    chart.sliders["n"].value = 3
    assert chart.message.value == ""
    assert "a −1.00" in chart.picture.value


def test_bad_rows_are_errors_too_and_are_shown_as_text(live):
    def odd(n):
        return [{"task": "a", "accuracy": 1 if n == 1 else math.nan if n == 2 else "<b>"}]

    chart = live(odd, {"n": Range.steps([1, 3], default=1)}, Bars("task", "accuracy"))
    chart.sliders["n"].value = 2
    assert "nan cannot be drawn" in chart.message.value
    chart.sliders["n"].value = 3
    assert "needs numbers in the column" in chart.message.value
    assert "&lt;b&gt;" in chart.message.value
    assert "<b>&" not in chart.message.value.replace("<b>This position did not work.</b>", "")


def test_the_running_state_shows_while_it_computes(live):
    seen = []

    def watched(n):
        if "chart" in globals_:
            seen.append((globals_["chart"].state.value, globals_["chart"].reset_button.disabled))
        return [{"task": "a", "accuracy": n}]

    globals_ = {}
    globals_["chart"] = live(watched, {"n": Range.steps([1, 3], default=1)}, Bars("task", "accuracy"))
    globals_["chart"].sliders["n"].value = 2
    assert seen == [('<span role="status">running…</span>', True)]
    assert globals_["chart"].state.value == ""


def test_an_error_at_the_start_is_raised(live):
    with pytest.raises(ZeroDivisionError):
        live(failing, {"n": Range.steps([1, 2], default=2)}, Bars("task", "accuracy"))


def test_a_say_function_is_shown_below_the_live_picture(live):
    chart = live(say=lambda panels: f"{len(panels['chart'])} rows & more")
    assert chart.picture.value.endswith("<p>8 rows &amp; more</p>")


def test_displaying_a_live_chart_shows_its_widget(live, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    chart = live()
    chart._ipython_display_()
    assert displayed == [chart.widget]
    kinds = [type(child).__name__ for child in chart.widget.children]
    assert kinds == ["HTML", "FloatLogSlider", "IntSlider", "HBox", "HTML", "HTML"]
    assert WORDS["question"] in chart.widget.children[0].value


# which of the two


def fake_kernel(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def test_the_default_is_static_without_a_kernel_and_live_with_one(monkeypatch):
    monkeypatch.delenv("TASKVEC_MINI_EXPLORE")
    assert sliders._mode() == "static"
    assert isinstance(static(), static_.StaticChart)
    fake_kernel(monkeypatch)
    assert sliders._mode() == "live"
    assert isinstance(static(), live_.LiveChart)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sliders._mode() == "static"  # no ipywidgets


def test_the_environment_variable_decides(monkeypatch):
    fake_kernel(monkeypatch)
    assert isinstance(static(), static_.StaticChart)
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "live")
    assert isinstance(static(), live_.LiveChart)
    monkeypatch.setenv("TASKVEC_MINI_EXPLORE", "statik")
    with pytest.raises(ValueError, match=r"unknown TASKVEC_MINI_EXPLORE 'statik': did you mean 'static'\?"):
        static()
