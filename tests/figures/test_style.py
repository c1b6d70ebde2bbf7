"""The palette keeps what its module promises: contrast on both pages, and colours told apart by everyone."""

import io
import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from taskvec_mini.figures import style
from taskvec_mini.figures.style import COLOURS, GREY, use_book_style

# Machado, Oliveira & Fernandes, IEEE TVCG 15(6), 2009, severity 1.0: matrices for linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
PAGES = [style.LIGHT_PAGE, style.DARK_PAGE]


def linear(colour):
    """Hex colour or RGB triple -> linear RGB (IEC 61966-2-1)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2 contrast ratio of two colours, from 1 to 21."""
    bright, dark = sorted((float(XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def lab(colour, vision="normal"):
    """CIELAB (D65) of a colour as it is seen."""
    seen = np.clip(VISION[vision] @ linear(colour), 0, 1)
    t = XYZ @ seen / XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, other, vision):
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


def test_the_measures_agree_with_published_values():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WebAIM's well-known example
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.02)
    for vision, matrix in VISION.items():
        assert matrix.sum(1) == pytest.approx(1, abs=1e-5), f"{vision}: a grey must stay as it is"
    # a red and a green of one lightness: far apart for most people, near for a deuteranope
    assert distance("#bf4040", "#6d7d1e", "normal") > 50 > 25 > distance("#bf4040", "#6d7d1e", "deuteranopia")


def test_marks_stand_out_from_both_pages():
    assert min(contrast(colour, page) for colour in COLOURS for page in PAGES) >= 3.0


def test_text_grey_is_as_near_as_can_be_to_the_best_on_both_pages():
    best = np.sqrt(contrast(*PAGES))
    assert best == pytest.approx(4.22, abs=0.01)
    assert min(contrast(GREY, page) for page in PAGES) >= max(4.0, best - 0.05)


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_every_kind_of_colour_vision(vision):
    for one, other in itertools.combinations(COLOURS, 2):
        assert distance(one, other, vision) >= 20, f"{one} and {other} look alike with {vision}"
    for colour in COLOURS:
        assert distance(colour, GREY, vision) >= 15, f"{colour} looks like the grey with {vision}"


def test_a_careless_palette_would_be_caught():
    """The check has teeth: matplotlib's own default colours do not pass it."""
    usual = [f"C{i}" for i in range(6)]
    pairs = itertools.combinations(usual, 2)
    assert min(distance(a, b, v) for a, b in pairs for v in VISION) < 10


@pytest.mark.parametrize("vision", VISION)
def test_the_sequential_map_grows_lighter_all_along(vision):
    colours = matplotlib.colormaps[style.SEQUENTIAL](np.linspace(0, 1, 33))[:, :3]
    lightness = [lab(colour, vision)[0] for colour in colours]
    assert (np.diff(lightness) > 0).all()


def test_series_differ_in_dashes_and_markers_too():
    looks = [style.series_style(i) for i in range(12)]
    assert len(COLOURS) == len(style.DASHES) == len(style.MARKERS) == 6
    for field in ("color", "linestyle", "marker"):
        assert len({str(look[field]) for look in looks[:6]}) == 6, field
    assert len({str(look) for look in looks}) == 12
    with pytest.raises(ValueError, match="index must be at least 0"):
        style.series_style(-1)


def test_book_style_draws_a_transparent_picture_of_the_books_width_with_the_same_bytes_twice():
    files = []
    with matplotlib.rc_context():
        use_book_style()
        for _ in range(2):
            figure, axes = plt.subplots()
            axes.plot([0, 1], [0, 1], label="a", **style.series_style(1))
            axes.legend()
            files.append(io.BytesIO())
            figure.savefig(files[-1], format="png")
            plt.close(figure)
            assert not axes.spines["top"].get_visible()
            assert not axes.spines["right"].get_visible()
    assert files[0].getvalue() == files[1].getvalue()
    picture = plt.imread(io.BytesIO(files[0].getvalue()))
    assert picture.shape == (408, 696, 4)
    assert picture[0, 0, 3] == 0  # the corner is transparent
    assert "text.color" in style.STYLE
    assert matplotlib.rcParams["text.color"] != GREY  # and the style did not outlive its context
