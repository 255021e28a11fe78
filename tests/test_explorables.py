"""Explorable figures: what Python writes, what the page makes of it, and its formulas."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
import test_book_pages as pages
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from torch import nn

from losslandscape import sgd_noise
from losslandscape.report import explorables
from losslandscape.report.explorables import choice, explorable, plain, slider, stops
from losslandscape.report.figures import twins
from losslandscape.rescaling import Orbit

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
RADII = explorables.log_spaced(0.02, 2, 20)
ALT = "A drawing of made-up numbers, for the tests."
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def line(slope, curvature, third):
    """A direction along which the loss is a cubic."""
    t = np.array([-r for r in reversed(RADII)] + [0.0, *RADII])
    return {"slope": slope, "curvature": curvature, "bend": curvature * t**2 / 2 + third * t**3}


def orbit(scales=(0.1, 1.0, 10.0)):
    a = torch.tensor(scales, dtype=torch.float64)
    level = torch.ones_like(a)
    return Orbit(a, a**2 + a**-2, a**2, 3 * level, level, 0 * level, torch.zeros(len(a)).long())


def batches(scale):
    """lambda_max of single batches that comes down to that of all images."""
    values = {"16": [6.0, 2.0, 7.0, 9.0], "256": [2.5, 3.5], "4096": [2.1]}
    return {
        "lambda_max": {"value": 2.0 * scale, "images": 60_000},
        "batch_lambda_max": {size: [scale * v for v in found] for size, found in values.items()},
    }


def valley(turn=0.0, side=9, **change):
    """A quadratic with its minimum, of loss 0.1, in the middle."""
    axis = np.linspace(-1, 1, side)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    loss = 0.1 + 5 * (np.cos(turn) * x + np.sin(turn) * y) ** 2 + 0.2 * y**2
    return {
        "axes": [axis.tolist(), axis.tolist()],
        "loss": loss.tolist(),
        "base": 0.1,
        "of": "the end point",
        "points": {"end point": [0, 0]},
        **change,
    }


def views():
    three = {"first end": [0, 0], "second end": [0.5, 0], "third end": [0, 0.75]}
    return {
        "one": {"filters": valley(), "eigenvectors": valley(0.7)},
        "two": {"filters": valley(0.2), "eigenvectors": valley(1.2)},
        "all": {"through the ends": valley(0.4, points=three)},
    }


def examples():
    """All figures, on made-up numbers."""
    directions = {"top": line(0.1, 1.0, 0.2), "gradient": line(-0.5, 0.2, 0.1)}
    other = {"top": line(0.2, 0.5, -0.3), "gradient": line(-0.3, 0.1, 0.4)}
    return [
        explorable(
            "taylor",
            twin="fig-taylor",
            alt=ALT,
            prompt="Make the radius small.",
            data={"radii": RADII, "lines": {"tanh": directions, "ReLU": other}},
            controls=[
                stops("radius", "Radius r", RADII, 0.5),
                choice("network", "Network", ["tanh", "ReLU"], "ReLU"),
                choice("direction", "Direction", directions),
            ],
        ),
        explorable(
            "trust-region",
            twin="fig-trust",
            alt=ALT,
            controls=[
                slider("radius", "Radius r", 0.1, 2, 0.05, 1),
                slider("gradient", "Gradient |g|", 0, 1, 0.05, 0.4),
                slider("angle", "Angle", 0, 90, 5, 60, "degrees"),
                slider("curvature", "Second curvature", -2, 1, 0.1, 0.3),
            ],
        ),
        explorable(
            "noise-ellipse",
            twin="fig-noise",
            alt=ALT,
            data=explorables.plane_noises(
                torch.tensor([10.0, 0.5]), torch.tensor([[3.0, 0.4], [0.4, 0.5]])
            ),
            controls=[
                stops("rate", "Learning rate", explorables.log_spaced(0.002, 0.8, 53), 0.02),
                stops("batch", "Batch size B", [2**k for k in range(11)], 64),
                slider("momentum", "Momentum", 0, 0.95, 0.05, 0),
                choice("noise", "Noise", ["isotropic", "like H", "measured"], "like H"),
            ],
        ),
        explorable(
            "power-iteration",
            twin="fig-power",
            alt=ALT,
            controls=[
                slider("second", "Second eigenvalue", -1.2, 0.9, 0.05, -0.9),
                slider("angle", "Angle", 5, 85, 5, 60, "degrees"),
                slider("step", "Step", 0, 30, 1, 3),
            ],
        ),
        explorable(
            "batch-bias",
            twin="fig-batches",
            alt=ALT,
            data=explorables.single_batches({"one": batches(1), "two": batches(3)}),
            controls=[
                stops("size", "Batch size", [16, 256, 4096], 256),
                choice("network", "Configuration", ["one", "two"]),
            ],
        ),
        explorable(
            "rescaling",
            twin="fig-rescaling",
            alt=ALT,
            data=explorables.orbits({"one": orbit(), "two": orbit()}, 512),
            controls=[
                stops("scale", "Scale a", [0.1, 1.0, 10.0], 10),
                choice("network", "Network", ["one", "two"]),
            ],
        ),
        explorable(
            "landscape",
            twin="fig-landscape",
            alt=ALT,
            data=explorables.landscape(views()),
            controls=[
                choice("network", "Network", views()),
                choice("plane", "Plane", ["filters", "eigenvectors"]),
                slider("turn", "Turn", 0, 360, 5, 30, "degrees"),
                slider("tilt", "Tilt", 15, 60, 5, 35, "degrees"),
                choice("view", "View", ["surface", "contours"]),
            ],
        ),
    ]


# --- Python ---------------------------------------------------------------------------------------


def spec(figure):
    """Read back the JSON as a browser does."""
    found = []

    class Reader(HTMLParser):
        def handle_data(self, data):
            found.append(data)

    Reader().feed(figure._repr_html_())
    assert len(found) == 1
    return json.loads(found[0])


def test_html_is_the_same_every_time_and_holds_no_code():
    for one, again in zip(examples(), examples(), strict=True):
        html = one._repr_html_()
        assert html == again._repr_html_()
        assert html.startswith(f'<div class="explorable" data-figure="{one.figure}">')
        assert html.count("<") == 4  # a div and a script with data
        assert "0x" not in repr(one)


def test_spec_is_read_back_with_rounded_numbers():
    taylor = spec(examples()[0])
    assert taylor["twin"] == "fig-taylor"
    assert taylor["data"]["lines"]["tanh"]["top"]["slope"] == 0.1
    numbers = taylor["data"]["lines"]["ReLU"]["gradient"]["bend"]
    assert numbers == [float(f"{v:.4g}") for v in numbers]
    assert taylor["controls"][0]["values"][taylor["controls"][0]["value"]] == pytest.approx(
        0.5, 0.1
    )
    assert taylor["controls"][1] == {
        "key": "network",
        "label": "Network",
        "options": ["tanh", "ReLU"],
        "value": "ReLU",
    }


def test_no_text_can_end_the_script():
    bad = "</script><script>alert(1)</script>"
    controls = [{**c, "label": bad} for c in spec(examples()[1])["controls"]]
    figure = explorable("trust-region", twin="fig-x", alt=bad, prompt=bad, controls=controls)
    assert figure._repr_html_().count("<script") == 1
    assert spec(figure)["alt"] == bad


@given(st.floats(min_value=-1e300, max_value=1e300))
def test_rounding_is_close_and_changes_nothing_twice(x):
    once = plain(x)
    assert plain(once) == once
    assert abs(once - x) <= 5.001e-4 * abs(x) + 1e-323
    assert math.copysign(1, once) == 1 or once != 0


def test_arrays_tensors_and_counts_become_lists_and_stay_counts():
    given = {"a": torch.ones(2, requires_grad=True), "b": np.int64(123456), "c": [True, None, "x"]}
    assert plain(given) == {"a": [1.0, 1.0], "b": 123456, "c": [True, None, "x"]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [float, np.float64, torch.tensor])
def test_a_number_that_is_not_finite_is_refused_by_its_place(bad, wrap):
    with pytest.raises(ValueError, match=r"data\.lines\.tanh\[1\] is -?(nan|inf)"):
        plain({"lines": {"tanh": [1.0, wrap(bad)]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "taylr"}, "no figure 'taylr': one of batch-bias, landscape, noise-ellipse"),
        ({"alt": "too short"}, "alt needs at least 20 characters .* got 'too short'"),
        ({"twin": "Fig 1"}, "twin must be the name of a figure"),
        ({"controls": []}, "angle, curvature, gradient, radius missing"),
        ({"data": {"points": []}}, "data of trust-region: no 'points'; it has none"),
    ],
)
def test_bad_figures_are_refused(change, message):
    good = {
        "name": "trust-region",
        "twin": "fig-x",
        "alt": ALT,
        "controls": spec(examples()[1])["controls"],
    }
    arguments = {**good, **change}
    with pytest.raises(ValueError, match=message):
        explorable(arguments.pop("name"), **arguments)


def test_controls_must_be_those_of_the_figure_once_each():
    controls = spec(examples()[1])["controls"]
    extra = [*controls, slider("speed", "Speed", 0, 1, 0.1, 0)]
    with pytest.raises(ValueError, match="controls of trust-region: no 'speed'; it has angle"):
        explorable("trust-region", twin="fig-x", alt=ALT, controls=extra)
    with pytest.raises(ValueError, match="the same name twice"):
        explorable("trust-region", twin="fig-x", alt=ALT, controls=[*controls, controls[0]])


def test_too_much_data_is_refused():
    data = {"examples": 1, "networks": list(range(20_000))}
    with pytest.raises(ValueError, match=r"characters, at most 60000: store less"):
        explorable("rescaling", twin="fig-x", alt=ALT, data=data, controls=CONTROLS_OF_RESCALING)


CONTROLS_OF_RESCALING = [stops("scale", "a", [1, 2], 1), choice("network", "Network", ["one"])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: slider("r", "r", 1, 1, 0.1, 1), "no step of 0.1 fits between 1 and 1"),
        (lambda: slider("r", "r", 0, 1, 0, 1), "no step of 0 fits"),
        (lambda: slider("r", "r", 0, 1, 2, 1), "no step of 2 fits"),
        (lambda: slider("r", "r", 0, 1, 0.1, 2), "2 is not between 0 and 1"),
        (lambda: slider("r", "r", 0, math.inf, 0.1, 2), "must be finite"),
        (lambda: slider("r", " ", 0, 1, 0.1, 0), "control r has no label"),
        (lambda: stops("r", "r", [1], 1), "two or more different values"),
        (lambda: stops("r", "r", [2, 1], 1), "in increasing order"),
        (lambda: stops("r", "r", [1, 1.00001], 1), "different values"),
        (lambda: stops("r", "r", [1, 2], math.nan), "value must be finite"),
        (lambda: stops("r", "r", [1, math.inf], 1), r"stops r\[1\] is inf"),
        (lambda: choice("n", "n", []), "give different options"),
        (lambda: choice("n", "n", ["a", "a"]), "give different options"),
        (lambda: choice("n", "n", ["a"], "b"), "'b' is not one of"),
    ],
)
def test_bad_controls_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [{1: 2}, {"a": object()}, {"a": 1j}])
def test_what_json_cannot_hold_is_refused(bad):
    with pytest.raises(TypeError, match="data"):
        plain(bad)


def test_taylor_lines_of_a_parabola():
    """(w - 3)^2 x^2 along +1 at w = 1: slope -4 x^2, curvature 2 x^2, no third derivative."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    directions = {"up": torch.ones(1), "down": -torch.ones(1)}
    lines = explorables.taylor_lines(
        model, nn.functional.mse_loss, (x, 3 * x), directions, [0.5, 1.0]
    )
    assert list(lines) == ["up", "down"]
    for name, sign in (("up", 1), ("down", -1)):
        found = lines[name]
        assert found["slope"] == pytest.approx(-16 * sign)
        assert found["curvature"] == pytest.approx(8)
        assert found["bend"] == pytest.approx([4, 1, 0, 1, 4])
    assert model.weight.item() == 1


def test_plane_noises_have_one_trace():
    h, seen = torch.tensor([10.0, 0.5]), torch.tensor([[3.0, 0.4], [0.4, 0.5]])
    data = explorables.plane_noises(h, seen)
    assert data["curvatures"] == [10.0, 0.5]
    assert {name: np.trace(c) for name, c in data["noises"].items()} == pytest.approx(
        {"isotropic": 3.5, "like H": 3.5, "measured": 3.5}
    )
    assert data["noises"]["like H"][0][0] / data["noises"]["like H"][1][1] == pytest.approx(20)
    assert "measured" not in explorables.plane_noises(h)["noises"]


@pytest.mark.parametrize("h", [[1.0, 2.0], [1.0, 0.0], [1.0, math.nan], [1.0, 1.0, 1.0]])
def test_plane_noises_need_two_ordered_positive_curvatures(h):
    with pytest.raises(ValueError, match="two positive curvatures"):
        explorables.plane_noises(torch.tensor(h))


@pytest.mark.parametrize("noise", [torch.eye(3), torch.zeros(2, 2), math.nan * torch.eye(2)])
def test_plane_noises_refuse_no_noise(noise):
    with pytest.raises(ValueError, match=r"a \(2, 2\) covariance"):
        explorables.plane_noises(torch.tensor([2.0, 1.0]), noise)


def test_orbits_need_common_factors_with_one_among_them():
    data = explorables.orbits({"one": orbit()}, 7)
    assert data["examples"] == 7
    assert plain(data)["networks"]["one"]["changed"] == [0, 0, 0]
    for curves in (
        {"one": orbit(), "two": orbit((0.1, 1.0))},
        {"one": orbit((0.1, 10.0))},
    ):
        with pytest.raises(ValueError, match="the same factors, 1 among them"):
            explorables.orbits(curves, 7)


def heights_of(view):
    text = view["heights"]
    return np.array([int(text[k : k + 2], 36) for k in range(0, len(text), 2)])


def test_single_batches_need_common_sizes_and_images():
    other = {"lambda_max": {"value": 1.0, "images": 60_000}, "batch_lambda_max": {"16": [1.0]}}
    with pytest.raises(ValueError, match="the same sizes and as many images"):
        explorables.single_batches({"one": batches(1), "two": other})


def test_a_landscape_keeps_every_loss_to_one_step_of_a_common_scale():
    data = plain(explorables.landscape(views()))
    low, high = data["scale"]
    everything = [np.array(v["loss"]) for row in views().values() for v in row.values()]
    assert low < np.log10(min(grid.min() for grid in everything))
    assert high > np.log10(max(grid.max() for grid in everything))
    for network, row in views().items():
        for name, view in row.items():
            stored = data["views"][network][name]
            losses = 10 ** (low + heights_of(stored) / 999 * (high - low))
            exact = np.array(view["loss"]).flatten()
            half_a_step = 10 ** ((high - low) / 999 / 2)
            assert np.abs(np.log(losses / exact)).max() <= np.log(half_a_step) * 1.001
            assert stored["side"] == 9
            assert stored["first"] == stored["second"] == [-1, 1]


def test_ten_landscapes_fit_on_a_page():
    many = {f"network {k}": {"plane": valley(k / 7, side=41)} for k in range(10)}
    landscape = next(figure for figure in examples() if spec(figure)["figure"] == "landscape")
    controls = spec(landscape)["controls"]
    figure = explorable(
        "landscape", twin="fig-x", alt=ALT, controls=controls, data=explorables.landscape(many)
    )
    assert len(figure.spec) < 40_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [[1.0, 0.0], [1.0, 1.0]]}, "positive and finite losses"),
        ({"loss": [[1.0, math.inf], [1.0, 1.0]]}, "positive and finite losses"),
        ({"loss": [[1.0, 2.0]]}, r"a square grid, got \(1, 2\)"),
        ({"axes": [[0.0, 1.0, 2.0], [0.0, 1.0]]}, "a square grid"),
        ({"axes": [[0.0, 1.0], [1.0, 0.0]]}, "evenly spaced, increasing"),
        ({"points": {key: [0, 0] for key in "abcd"}}, "up to three points, got 4"),
    ],
)
def test_bad_landscapes_are_refused(change, message):
    good = valley(axes=[[0.0, 1.0]] * 2, loss=[[1.0, 2.0], [3.0, 4.0]])
    explorables.landscape({"net": {"plane": good}})
    with pytest.raises(ValueError, match=message):
        explorables.landscape({"net": {"plane": {**good, **change}}})


def test_uneven_axes_are_refused():
    uneven = valley(side=3, axes=[[-1.0, 0.5, 1.0], [-1.0, 0.0, 1.0]])
    with pytest.raises(ValueError, match="evenly spaced"):
        explorables.landscape({"net": {"plane": uneven}})


def test_twins_draw():
    lines = {"tanh": line(0.1, 1.0, 0.2), "ReLU": line(0.2, 0.5, -0.3)}
    figure = twins.taylor_models(lines, RADII, 0.5)
    assert len(figure.axes) == 2
    # The cubic's largest miss over the quadratic term at the largest radius inside.
    inside = max(r for r in RADII if r <= 0.5)
    share = 0.2 * inside**3 / (0.5**2 / 2)
    assert f"tanh: {100 * share:.0f} % missed" in figure.axes[0].get_xlabel()
    points = [a for a in twins.trust_region_maps((0.4, 0), (1.0, 0.3)).axes[0].lines]
    exact = [tuple(p.get_xydata()[0]) for p in points if p.get_marker() == "o"]
    np.testing.assert_allclose(exact, [(0.5, 0), (1, 0), (2, 0)], atol=1e-12)


def test_the_twin_of_power_iteration_tells_the_last_step():
    figure = twins.power_steps([0.5, -1.0], angle=45, steps=1)
    left, right = (axis.get_xlabel() for axis in figure.axes)
    # (1, 0.5)/sqrt(1.25) has the quotient 0.9; (1, -1)/sqrt(2) stands between 1 and -1.
    assert "quotient 0.90\nresidual 0.20" in left
    assert "eigenvalues 1, \N{MINUS SIGN}1\nquotient 0.00\nresidual 1.00" in right


def test_the_runtime_is_small():
    assert (STATIC / "explore.js").stat().st_size < 36_000
    assert (STATIC / "explore.css").stat().st_size < 6_000


# --- The page -------------------------------------------------------------------------------------

without_browser = importlib.util.find_spec("playwright") is None or pages.CHROMIUM is None
in_browser = pytest.mark.skipif(without_browser, reason="needs playwright and a Chromium")
browser = pages.browser
FIGURES = [spec(figure)["figure"] for figure in examples()]
TWINS = {name: figure.spec.split('"twin":"')[1].split('"')[0] for name, figure in
         zip(FIGURES, examples(), strict=True)}  # fmt: skip
each_figure = pytest.mark.parametrize("name", FIGURES)


def cells_of(figure, twin):
    picture = new_output("display_data", {"image/png": PIXEL})
    shown = new_code_cell("twin", outputs=[picture], execution_count=1)
    shown.metadata["mystnb"] = {
        "figure": {"name": twin, "caption": f"What to look for: {twin}."},
        "image": {"alt": "The static twin of a figure."},
    }
    data = new_output("execute_result", {"text/html": figure._repr_html_()}, execution_count=2)
    hidden = new_code_cell("data", outputs=[data], execution_count=2)
    hidden.metadata["tags"] = ["remove-input"]
    return [new_markdown_cell(f"## About {twin}\n\nSee {{numref}}`{twin}`."), shown, hidden]


def broken():
    """One whose twin is elsewhere, and one whose data lack a network that can be chosen."""
    data = {"radii": RADII, "lines": {}}
    controls = spec(examples()[0])["controls"]
    lost = explorable(
        "trust-region", twin="fig-lost", alt=ALT, controls=spec(examples()[1])["controls"]
    )
    empty = explorable("taylor", twin="fig-empty", alt=ALT, data=data, controls=controls)
    return [*cells_of(lost, "fig-found"), *cells_of(empty, "fig-empty")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small book in the theme of the book: the page, a broken one and a plain one."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    folder = tmp_path_factory.mktemp("site")
    kernel = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    cells = [new_markdown_cell("# Page\n\n```{toctree}\nbroken\nplain\n```")]
    for name, figure in zip(FIGURES, examples(), strict=True):
        cells += cells_of(figure, TWINS[name])
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "page.ipynb")
    cells = [new_markdown_cell("# Broken"), *broken()]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "broken.ipynb")
    (folder / "plain.md").write_text("# Plain\n\nNothing `class=explorable` here.\n", "utf-8")
    warnings = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, docutils_namespace():
        patch.syspath_prepend(ROOT / "book" / "_ext")
        Sphinx(
            srcdir=folder,
            confdir=None,
            outdir=folder / "html",
            doctreedir=folder / "trees",
            buildername="html",
            confoverrides={
                "extensions": ["myst_nb", "explorables"],
                "nb_execution_mode": "off",
                "root_doc": "page",
                "numfig": True,
                "exclude_patterns": ["html", "trees"],
                "html_theme": "sphinx_book_theme",
                "html_title": "Test",
                "html_context": {"default_mode": "light"},
                "html_static_path": [str(STATIC)],
                "html_css_files": ["book.css"],
                "html_js_files": ["book.js"],
            },
            status=None,
            warning=warnings,
        ).build()
    assert not re.search("WARNING|ERROR", warnings.getvalue()), warnings.getvalue()
    alone(folder / "html")
    return folder / "html"


def alone(html):
    """Write, for each figure, the page without the others: it loads sooner."""
    text = (html / "page.html").read_text("utf-8")
    for name in FIGURES:
        others = re.compile(
            rf'<div class="explorable" data-figure="(?!{name}").*?</div>', re.DOTALL
        )
        left, count = others.subn("", text)
        assert count == len(FIGURES) - 1
        (html / f"{name}-alone.html").write_text(left, "utf-8")


def test_script_and_style_are_loaded_where_they_are_needed_only(site):
    for page, needed in (("page", True), ("broken", True), ("plain", False), ("search", False)):
        text = (site / f"{page}.html").read_text("utf-8")
        assert bool(re.search(r"<script[^>]*explore\.js", text)) is needed, page
        assert bool(re.search(r"<link[^>]*explore\.css", text)) is needed, page


@pytest.fixture(scope="module")
def window(browser):
    """One tab for many tests: loading a page again is quicker than opening a tab for it."""
    tab = new_tab(browser)
    yield tab
    tab.close()


@pytest.fixture
def tab(site, window, request):
    """The page, loaded anew, or the one figure that a test is about."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    window.set_viewport_size(pages.DESK)
    window.seen |= {"requests": [], "errors": []}
    window.goto(
        (site / (f"{name}-alone.html" if name else "page.html")).as_uri(), wait_until="load"
    )
    return window


def open_page(browser, path, **options):
    tab = new_tab(browser, **options)
    tab.goto(path.as_uri(), wait_until="load")
    return tab


def new_tab(browser, **options):
    tab = browser.new_page(viewport=options.pop("viewport", pages.DESK), **options)
    tab.set_default_timeout(pages.PATIENCE)
    tab.seen = {"requests": [], "errors": []}
    tab.on("request", lambda request: tab.seen["requests"].append(request.url))
    tab.on("pageerror", lambda error: tab.seen["errors"].append(str(error)))
    tab.on(
        "console",
        lambda said: tab.seen["errors"].append(said.text) if said.type == "error" else None,
    )
    return tab


def box(tab, name):
    return tab.locator(f"figure#{TWINS[name]} .explorable-box")


def drawing(tab, name):
    """The drawing, after all frames that were asked for."""
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return box(tab, name).locator("> svg").inner_html()


# After a change of size comes a frame, then the drawing in the next one, then the sentence's timer:
# what is asked for later by the page itself comes later, however slow the machine is.
SETTLED = """async () => {
  for (let i = 0; i < 3; i++) await new Promise((done) => requestAnimationFrame(done));
  await new Promise((done) => setTimeout(done, 300));
}"""


def sentence(tab, name):
    """The sentence, after it had time to change."""
    tab.evaluate(SETTLED)
    return box(tab, name).locator(".status").inner_text()


def move(tab, name, **values):
    """Set controls to values (of stops: to places)."""
    for key, value in values.items():
        tab.locator(f"#{TWINS[name]}-{key}").evaluate(
            "(field, value) => { field.value = value; field.dispatchEvent(new Event('input')); }",
            value,
        )


@in_browser
def test_all_figures_come_alive_without_error_or_request(tab):
    tab.wait_for_timeout(100)
    assert tab.seen["errors"] == []
    assert [url for url in tab.seen["requests"] if not url.startswith(("file:", "data:"))] == []
    assert tab.locator("figure.explored").count() == len(FIGURES)
    assert tab.locator("figure.explored img").first.is_visible() is False
    assert tab.locator("figure.explored figcaption").first.is_visible()
    assert tab.evaluate("Object.keys(explore.figures).sort()") == sorted(explorables.FIGURES)
    assert tab.evaluate("document.getAnimations().length") == 0
    assert tab.locator(".cell.tag_remove-input:visible").count() == 0  # no empty bars


@in_browser
@each_figure
def test_every_control_changes_drawing_and_sentence_or_table(tab, name):
    table = box(tab, name).locator("tbody")
    for control in box(tab, name).locator("input, select").all():
        before = drawing(tab, name), table.inner_html()
        if control.evaluate("field => field.tagName") == "SELECT":
            chosen = control.input_value()
            options = control.evaluate("field => [...field.options].map((o) => o.value)")
            control.select_option(next(o for o in options if o != chosen))
        else:
            at_start = control.evaluate("field => field.value === field.min")
            control.focus()
            control.press("ArrowRight" if at_start else "ArrowLeft")
        after = drawing(tab, name), table.inner_html()
        if name == "rescaling" and control.evaluate("field => field.tagName") == "SELECT":
            continue  # the two made-up networks are the same
        assert after[0] != before[0], control
    assert "NaN" not in after[0] + after[1]
    assert "undefined" not in after[0] + after[1]


@in_browser
@each_figure
def test_extremes_of_all_controls_draw(tab, name):
    for key in ("Home", "End"):
        for control in box(tab, name).locator("input").all():
            control.focus()
            control.press(key)
        for text in (drawing(tab, name), sentence(tab, name)):
            assert "NaN" not in text
            assert "Infinity" not in text
    assert tab.seen["errors"] == []


@in_browser
@each_figure
def test_the_keyboard_reaches_moves_and_resets_everything(tab, name):
    start = drawing(tab, name), sentence(tab, name)
    fields = box(tab, name).locator("input, select")
    fields.first.focus()
    for place in range(fields.count()):
        assert fields.nth(place).evaluate("field => field === document.activeElement")
        style = fields.nth(place).evaluate("field => getComputedStyle(field).outlineStyle")
        assert style == "solid"
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Reset"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert box(tab, name).locator("table").is_visible()
    slider = box(tab, name).locator("input").first
    shown = box(tab, name).locator("output").first
    slider.focus()
    value = shown.inner_text()
    tab.keyboard.press("PageDown")
    assert shown.inner_text() != value
    assert slider.get_attribute("aria-valuetext") == shown.inner_text().replace("\u00a0", "\u00a0")
    tab.keyboard.press("Home")
    assert drawing(tab, name) != start[0]
    box(tab, name).get_by_role("button", name="Reset").press("Enter")
    assert (drawing(tab, name), sentence(tab, name)) == start


@in_browser
@each_figure
def test_names_and_roles(tab, name):
    canvas = box(tab, name).locator("> svg")
    assert canvas.get_attribute("role") == "img"
    assert canvas.get_attribute("aria-label") == ALT
    status = box(tab, name).locator(".status")
    assert canvas.get_attribute("aria-describedby") == status.get_attribute("id")
    assert status.get_attribute("role") == "status"
    for field in box(tab, name).locator("input, select").all():
        label = field.evaluate("field => field.labels[0].textContent")
        assert label.strip()
        assert field.evaluate("field => document.querySelectorAll('#' + field.id).length") == 1
    for output in box(tab, name).locator("output").all():
        assert output.get_attribute("aria-live") == "off"  # the slider itself tells its value


@in_browser
def test_unit_is_spoken(tab):
    angle = tab.locator("#fig-trust-angle")
    assert angle.get_attribute("aria-valuetext") == "60\u00a0degrees"


@in_browser
def test_the_sentence_waits_for_a_rest(tab):
    before = sentence(tab, "trust-region")
    move(tab, "trust-region", radius=2)
    assert box(tab, "trust-region").locator(".status").inner_text() == before
    assert sentence(tab, "trust-region") != before


@in_browser
def test_the_sentence_is_that_of_a_drawing_that_comes_late(tab):
    tab.evaluate(
        """() => { const soon = requestAnimationFrame;
          window.requestAnimationFrame = (draw) => soon(() => setTimeout(draw, 500)); }"""
    )
    move(tab, "trust-region", radius=2)
    assert "eq. 4 says 2." in sentence(tab, "trust-region")


@in_browser
def test_a_figure_that_is_unfolded_later_has_its_sentence(site, browser):
    text = (site / "page.html").read_text("utf-8")
    folded = text.replace("</head>", "<style>figure { display: none !important }</style></head>")
    page = site / "folded.html"
    page.write_text(folded, "utf-8")
    tab = open_page(browser, page)
    assert box(tab, "trust-region").locator(".status").text_content() == ""
    tab.add_style_tag(content="html figure { display: block !important }")
    assert sentence(tab, "trust-region").startswith("The model rises")
    tab.close()


def taylor_drawn(tab, data, radius):
    """Sentence of the figure ``taylor`` on other data, and its broken attributes."""
    state = {"radius": radius, "network": "n", "direction": "u"}
    return tab.evaluate(
        """([data, state]) => {
          const canvas = document.createElementNS("http://www.w3.org/2000/svg", "svg");
          const {sentence} = explore.figures.taylor(canvas, 600, data, state);
          const bad = [...canvas.querySelectorAll("*")].flatMap((e) => [...e.attributes])
            .filter((a) => /NaN|Infinity/.test(a.value)).map((a) => a.value);
          return [sentence, bad];
        }""",
        [data, state],
    )


@in_browser
@pytest.mark.parametrize(("radius", "inside"), [(9, "2"), (1.99, "1.57"), (0.001, "0.02")])
def test_a_radius_that_is_not_stored_is_never_overstated(tab, radius, inside):
    data = plain({"radii": RADII, "lines": {"n": {"u": line(0.1, 1.0, 0.2)}}})
    told, bad = taylor_drawn(tab, data, radius)
    share = 100 * 0.2 * float(inside) ** 3 / (float(inside) ** 2 / 2)
    assert told.startswith(f"Up to radius {inside} ")
    assert float(re.search(r"([\d.]+)\u00a0%", told)[1]) == pytest.approx(share, rel=0.01)
    assert bad == []


@in_browser
def test_a_line_without_curvature_has_no_share(tab):
    told, bad = taylor_drawn(
        tab, plain({"radii": RADII, "lines": {"n": {"u": line(0.3, 0.0, 0.2)}}}), 1
    )
    assert "there is no curvature" in told
    assert not re.search("NaN|Infinity", told)
    assert bad == []


@in_browser
def test_the_table_holds_the_current_values(tab):
    move(tab, "trust-region", gradient=0, radius=2, curvature=0.5)
    drawing(tab, "trust-region")
    rows = (
        box(tab, "trust-region")
        .locator("tr")
        .evaluate_all(
            "rows => Object.fromEntries(rows.map((r) => [...r.children].map((c) => c.textContent)))"
        )
    )
    assert rows["Largest rise"] == rows["Eq. 4, r\u00b2\u03bb\u2081/2"] == "2"
    assert rows["Ratio"] == "1"
    assert "They agree." in sentence(tab, "trust-region")


@in_browser
def test_the_hard_case_is_named_and_drawn_twice(tab):
    move(tab, "trust-region", angle=90, gradient=0.2, radius=1, curvature=0)
    assert "two points are equally high" in sentence(tab, "trust-region")
    assert box(tab, "trust-region").locator("> svg .mark.full").count() == 2


@in_browser
def test_an_unstable_learning_rate_is_named_and_has_no_ellipse(tab):
    lines = box(tab, "noise-ellipse").locator("> svg .line.a")
    assert lines.count() == 1
    move(tab, "noise-ellipse", rate=52)
    assert sentence(tab, "noise-ellipse").startswith("Unstable: the learning rate is 400")
    assert lines.count() == 0


@in_browser
@pytest.mark.parametrize(
    ("second", "words"),
    [
        (0.5, "It turns to v\u2081"),
        (-1.2, "\u22121.2 is the largest in modulus, and the largest eigenvalue, 1, is missed"),
        (-1, "It jumps to and fro for ever"),
    ],
)
def test_power_iteration_says_where_it_ends(tab, second, words):
    move(tab, "power-iteration", second=second)
    assert words in sentence(tab, "power-iteration")


@in_browser
def test_batches_are_counted(tab):
    move(tab, "batch-bias", size=0)
    said = sentence(tab, "batch-bias")
    assert "the mean is 3 times" in said
    assert "3 of 4 batches lie above it" in said
    assert "half of them between 5 and 7.5" in said
    assert "2, 9" in box(tab, "batch-bias").locator("table").text_content()


@in_browser
def test_no_prediction_changes_along_the_orbit(tab):
    assert "With a = 10, \u03bb_max is 50 times" in sentence(tab, "rescaling")
    assert "weights: 1.00 times. 0 of 512 predictions changed." in sentence(tab, "rescaling")


def degrees(tab, key):
    return int(tab.locator(f"#fig-landscape-{key}").input_value())


@in_browser
def test_a_landscape_is_turned_and_tilted_by_dragging(tab):
    canvas = box(tab, "landscape").locator("> svg")
    canvas.scroll_into_view_if_needed()
    at = canvas.bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    before = drawing(tab, "landscape")
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 50, y + 50)
    tab.mouse.up()
    assert (degrees(tab, "turn"), degrees(tab, "tilt")) == (60, 50)
    assert box(tab, "landscape").locator("output").first.inner_text() == "60\u00a0degrees"
    turned = drawing(tab, "landscape")
    assert turned != before
    tab.mouse.move(x, y)  # no button is held
    assert drawing(tab, "landscape") == turned
    tab.mouse.down()
    tab.mouse.move(x - 200, y + 500)
    tab.mouse.up()
    assert degrees(tab, "turn") == 300  # all the way round
    assert degrees(tab, "tilt") == 60  # no further than the slider
    move(tab, "landscape", view="contours")
    drawing(tab, "landscape")
    tab.mouse.down()
    tab.mouse.move(x, y)
    tab.mouse.up()
    assert degrees(tab, "turn") == 300  # a map does not turn
    box(tab, "landscape").get_by_role("button", name="Reset").press("Enter")
    assert drawing(tab, "landscape") == before


@in_browser
def test_a_finger_turns_and_scrolls(site, browser):
    tab = open_page(browser, site / "page.html", viewport=pages.PHONE, has_touch=True)
    canvas = box(tab, "landscape").locator("> svg")
    canvas.scroll_into_view_if_needed()
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "pan-y"
    at = canvas.bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    session = tab.context.new_cdp_session(tab)
    touch = "Input.dispatchTouchEvent"
    session.send(touch, {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 11):
        session.send(touch, {"type": "touchMove", "touchPoints": [{"x": x + 10 * step, "y": y}]})
    session.send(touch, {"type": "touchEnd", "touchPoints": []})
    assert degrees(tab, "turn") == 90
    move(tab, "landscape", view="contours")
    drawing(tab, "landscape")
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "auto"
    tab.close()


@in_browser
def test_a_landscape_says_how_much_lies_below_twice_the_loss(tab):
    loss = np.array(views()["two"]["filters"]["loss"])
    move(tab, "landscape", network="two")
    words = sentence(tab, "landscape")
    assert words.startswith("two, filters: the loss is below twice that of the end point on ")
    share = float(re.search(r"([\d.]+)\u00a0%", words)[1])
    assert share == pytest.approx(100 * (loss < 0.2).mean(), abs=0.05)
    assert float(re.search(r"reaches ([\d.]+) nats", words)[1]) == pytest.approx(
        loss.max(), rel=0.01
    )


@in_browser
def test_a_plane_of_its_own_is_shown_whatever_plane_is_chosen(tab):
    move(tab, "landscape", network="all")
    first = drawing(tab, "landscape")
    assert sentence(tab, "landscape").startswith("all, through the ends: ")
    assert box(tab, "landscape").locator("> svg .mark").count() == 3
    keys = box(tab, "landscape").locator(".keys li").all_inner_texts()
    assert keys == ["twice the loss of the end point", "first end", "second end", "third end"]
    move(tab, "landscape", plane="eigenvectors")
    assert drawing(tab, "landscape") == first


@in_browser
def test_marks_and_tiles_of_a_map_are_at_their_coordinates(tab):
    move(tab, "landscape", network="all", view="contours")
    drawing(tab, "landscape")
    canvas = box(tab, "landscape").locator("> svg")
    frame = canvas.locator(".frame").evaluate(
        "f => ['x', 'y', 'width', 'height'].map((a) => Number(f.getAttribute(a)))"
    )
    places = canvas.locator(".mark").evaluate_all(
        "all => all.map((m) => m.getAttribute('transform').match(/[-\\d.]+/g).map(Number))"
    )
    for (x, y), place in zip(((0, 0), (0.5, 0), (0, 0.75)), places, strict=True):
        across, down = frame[0] + frame[2] * (x + 1) / 2, frame[1] + frame[3] * (1 - y) / 2
        assert place == pytest.approx([across, down], abs=0.1)
    # The darkest tile, the lowest loss, is at the end point; light tiles are high.
    tiles = canvas.locator(".surface path").evaluate_all(
        "all => all.map((p) => [p.getAttribute('d').match(/[\\d.]+/g).slice(0, 2).map(Number),"
        " Number(p.getAttribute('fill').match(/(\\d+)%\\)/)[1])])"
    )
    assert len(tiles) == 8 * 8
    lightness = [light for _, light in tiles]
    assert len(set(lightness)) > 10
    loss = np.array(views()["all"]["through the ends"]["loss"])
    for (left, bottom), light in tiles:
        i = round((left - frame[0]) / frame[2] * 8)
        j = round((frame[1] + frame[3] - bottom) / frame[3] * 8)
        around = np.log10(loss[i : i + 2, j : j + 2]).mean()
        rank = (around - np.log10(loss.min())) / np.log10(loss.max() / loss.min())
        assert light == pytest.approx(20 + 70 * rank, abs=4)


@in_browser
def test_the_back_of_the_surface_is_drawn_first(tab):
    move(tab, "landscape", turn=0, tilt=30)
    drawing(tab, "landscape")
    downs = (
        box(tab, "landscape")
        .locator("> svg .surface path")
        .evaluate_all("all => all.map((p) => Number(p.getAttribute('d').match(/[-\\d.]+/g)[0]))")
    )
    assert len(downs) == 64
    first_row, last_row = sorted(downs[:8]), sorted(downs[-8:])
    assert first_row == last_row  # each is one row of the grid, from side to side


@in_browser
@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_fingers_and_texts_have_room(site, browser, width):
    tab = open_page(browser, site / "page.html", viewport={"width": width, "height": 844})
    tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    heights = tab.locator(".explorable-box :is(input, select, button, summary)").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44
    assert too_far(tab) == []
    tab.close()


def too_far(tab):
    """Texts of the drawings that are cut off or small."""
    return tab.evaluate(
        """() => [...document.querySelectorAll(".explorable-box > svg")].flatMap((canvas) => {
          const frame = canvas.getBoundingClientRect();
          return [...canvas.querySelectorAll("text")].filter((text) => {
            const at = text.getBoundingClientRect();
            return at.left < frame.left - 1 || at.right > frame.right + 1 || at.top < frame.top - 1
              || at.bottom > frame.bottom + 1 || parseFloat(getComputedStyle(text).fontSize) < 13;
          }).map((text) => text.textContent);
        })"""
    )


@in_browser
def test_the_drawing_follows_the_width(tab):
    assert too_far(tab) == []
    wide = box(tab, "taylor").locator("> svg").get_attribute("viewBox")
    tab.set_viewport_size(pages.PHONE)
    tab.evaluate(SETTLED)
    canvas = box(tab, "taylor").locator("> svg")
    assert canvas.get_attribute("viewBox") != wide
    assert float(canvas.get_attribute("viewBox").split()[2]) == pytest.approx(
        canvas.evaluate("canvas => canvas.getBoundingClientRect().width"), abs=1
    )


COLOURS = """() => {
  const light = (css) => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.fillStyle = css; pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (css) => {
    const [a, b] = [light(css), page].sort((p, q) => q - p);
    return (a + 0.05) / (b + 0.05);
  };
  const all = (query, property) => [...document.querySelectorAll(`.explorable-box ${query}`)]
    .map((e) => contrast(getComputedStyle(e)[property]));
  return {
    stroke: getComputedStyle(document.querySelector(".explorable-box .line.a")).stroke,
    texts: Math.min(...all("svg text", "fill")),
    lines: Math.min(...all("svg :is(.line, .mark)", "stroke")),
  };
}"""


@in_browser
def test_colours_follow_the_theme_and_are_seen_in_both(tab):
    seen = {}
    for theme in ("light", "dark"):
        tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        tab.evaluate(SETTLED)
        seen[theme] = tab.evaluate(COLOURS)
        assert seen[theme]["texts"] >= 4.5
        assert seen[theme]["lines"] >= 3
    assert seen["light"]["stroke"] != seen["dark"]["stroke"]


@in_browser
@each_figure
def test_lines_differ_by_dash_and_points_by_shape(tab, name):
    looks = (
        box(tab, name)
        .locator(".keys path")
        .evaluate_all(
            """paths => paths.map((p) => p.matches(".mark") ? p.getAttribute("d")
          : getComputedStyle(p).strokeDasharray)"""
        )
    )
    # The arrow of the gradient is a solid line too, but an arrow.
    assert len(set(looks)) == len(looks) - (name == "trust-region")


@in_browser
def test_paper_shows_the_twins_only(tab):
    tab.emulate_media(media="print")
    assert [img.is_visible() for img in tab.locator("figure.explored img").all()] == [True] * len(
        FIGURES
    )
    assert [b.is_visible() for b in tab.locator(".explorable-box").all()] == [False] * len(FIGURES)
    tab.emulate_media(media="screen")
    assert tab.locator("figure.explored img:visible").count() == 0


@in_browser
def test_without_script_the_twins_are_seen(site, browser):
    tab = open_page(browser, site / "page.html", java_script_enabled=False)
    assert [img.is_visible() for img in tab.locator("figure img").all()] == [True] * len(FIGURES)
    assert tab.locator(".explorable-box").count() == 0
    assert tab.locator(".cell.tag_remove-input:visible").count() == 0
    tab.close()


@in_browser
def test_a_broken_figure_leaves_its_twin_and_says_why(site, browser):
    tab = open_page(browser, site / "broken.html")
    tab.wait_for_timeout(100)
    assert len(tab.seen["errors"]) == 2
    assert "explorable trust-region: no figure fig-lost here" in tab.seen["errors"][0]
    assert [img.is_visible() for img in tab.locator("figure img").all()] == [True, True]
    assert tab.locator(".explorable-box").count() == 0
    tab.close()


@in_browser
@pytest.mark.skipif(not pages.axe_script(), reason="axe-playwright-python is not installed")
@pytest.mark.parametrize("viewport", [pages.DESK, pages.PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(site, browser, viewport):
    tab = open_page(browser, site / "page.html", viewport=viewport, reduced_motion="reduce")
    tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    tab.evaluate(pages.axe_script())
    for theme in ("light", "dark"):
        tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        found = tab.evaluate(
            """() => axe.run(".explorable-box", {resultTypes: ["violations"]}).then((result) =>
              result.violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html)}`))"""
        )
        assert found == []
    tab.close()


# --- The formulas of the page against Python ------------------------------------------------------


@pytest.fixture(scope="module")
def formula(site, browser):
    """Return a function that evaluates a formula of the page on a list of argument lists."""
    tab = open_page(browser, site / "page.html")
    call = "([name, cases]) => cases.map((given) => explore.formulas[name](...given))"
    yield lambda name, cases: tab.evaluate(call, [name, cases])
    tab.close()


@in_browser
def test_misses_are_those_of_the_stored_points(formula):
    rng = np.random.default_rng(0)
    cases = [(RADII, rng.normal(size=41).tolist(), float(rng.normal())) for _ in range(20)]
    t = np.array([-r for r in reversed(RADII)] + [0.0, *RADII])
    for (radii, bend, curvature), found in zip(cases, formula("misses", cases), strict=True):
        rest = np.abs(bend - curvature * t**2 / 2)
        for radius, one in zip(radii, found, strict=True):
            inside = (np.abs(t) <= radius) & (t != 0)
            assert one["quadratic"] == pytest.approx(rest[inside].max())
            assert one["linear"] == pytest.approx(np.abs(bend)[inside].max())
            assert one["term"] == pytest.approx(abs(curvature) * radius**2 / 2)


@in_browser
def test_largest_rise_solves_the_trust_region_problem(formula):
    """Feasible, optimal by its conditions (More and Sorensen 1983), not below 2000 other points."""
    rng = np.random.default_rng(0)
    cases = [
        [rng.normal(size=2).tolist(), (rng.normal(size=2) * size).tolist(), radius]
        for size in (1e-6, 0.1, 1, 100)
        for radius in (0.01, 1, 30)
        for _ in range(20)
    ]
    cases += [[[1, h2], [0, g2], r] for h2 in (-2, 0, 0.9) for g2 in (0, 0.05, 3) for r in (0.1, 1)]
    cases += [[[1, 1], [0.3, 0.4], 1], [[1, 1], [0, 0], 1], [[-1, -2], [0.1, 0.1], 1]]
    turns = np.linspace(0, 2 * np.pi, 400)
    for (h, g, radius), found in zip(cases, formula("largestRise", cases), strict=True):
        h, g, d = np.array(h), np.array(g), np.array(found["d"])
        scale = np.abs(h).max() * radius + np.linalg.norm(g)
        mu, size = found["multiplier"], np.linalg.norm(d)
        assert size <= radius * (1 + 1e-9)
        assert mu >= max(h.max(), 0) * (1 - 1e-12)
        np.testing.assert_allclose((mu - h) * d, g, atol=1e-9 * scale)
        assert mu * (radius - size) <= 1e-9 * scale
        assert found["value"] == pytest.approx(g @ d + d @ (h * d) / 2, abs=1e-12 * scale * radius)
        for share in (0.25, 0.5, 0.75, 1.0):
            x, y = share * radius * np.cos(turns), share * radius * np.sin(turns)
            others = g[0] * x + g[1] * y + (h[0] * x**2 + h[1] * y**2) / 2
            assert found["value"] >= others.max() - 1e-9 * scale * radius


@in_browser
def test_hard_case_is_found(formula):
    cases = [[[1, 0.2], [0, 0.1], 1], [[1, 0.2], [0, 2], 1], [[1, 0.2], [1e-3, 0.1], 1]]
    found = formula("largestRise", cases)
    assert [one["hard"] for one in found] == [True, False, False]
    along = 0.1 / 0.8  # (1 - 0.2) d_2 = 0.1, the rest of the length goes along the first
    assert found[0]["d"] == pytest.approx([math.sqrt(1 - along**2), along])


@in_browser
def test_stationary_covariance_is_that_of_the_library(formula):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(60):
        root = rng.normal(size=(2, 2))
        h, momentum = np.exp(rng.normal(size=2) * 2), rng.uniform(0, 0.99)
        rate = rng.uniform(0.001, 0.999) * 2 * (1 + momentum) / h.max()
        cases.append([h.tolist(), (root @ root.T).tolist(), rate, momentum])
    for (h, C, rate, momentum), found in zip(cases, formula("stationary", cases), strict=True):
        H = torch.diag(torch.tensor(h, dtype=torch.float64))
        noise = torch.tensor(C, dtype=torch.float64)
        expected = sgd_noise.stationary_covariance(H, noise, rate, momentum=momentum)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        for i in (0, 1):  # per direction
            top = rate * C[i][i] * (1 + momentum)
            below = h[i] * (1 - momentum) * (2 * (1 + momentum) - rate * h[i])
            assert found[i][i] == pytest.approx(top / below)


@in_browser
def test_no_stationary_state_beyond_the_limit(formula):
    C = [[1, 0], [0, 1]]
    for momentum in (0, 0.9):
        limit = sgd_noise.stability_limit(0.1, momentum=momentum)
        pairs = [[1, limit * 0.999], [1, limit], [limit * 1.001, 1], [1, 0], [-1, 1]]
        found = formula("stationary", [[h, C, 0.1, momentum] for h in pairs])
        assert [one is not None for one in found] == [True, False, False, False, False]


@in_browser
def test_power_steps_are_those_of_a_matrix(formula):
    cases = [(second, angle, 12) for second in (-1.2, -1, -0.3, 0.9) for angle in (0.1, 1.2)]
    for (second, angle, steps), found in zip(cases, formula("power", cases), strict=True):
        matrix, v = np.diag([1.0, second]), np.array([math.cos(angle), math.sin(angle)])
        for k in range(steps + 1):
            theta = v @ matrix @ v
            assert found[k]["x"] * v[0] + found[k]["y"] * v[1] == pytest.approx(1)
            assert found[k]["quotient"] == pytest.approx(theta)
            assert found[k]["residual"] == pytest.approx(np.linalg.norm(matrix @ v - theta * v))
            v = matrix @ v / np.linalg.norm(matrix @ v)


@in_browser
def test_quantiles_are_those_of_numpy(formula):
    rng = np.random.default_rng(0)
    cases = [(rng.normal(size=n).tolist(), q) for n in (1, 2, 7, 20) for q in (0, 0.25, 0.5, 1)]
    expected = [np.quantile(*case) for case in cases]
    assert formula("quantile", cases) == pytest.approx(expected)


@in_browser
def test_ellipse_has_the_axes_of_the_covariance(formula):
    rng = np.random.default_rng(0)
    matrices = [(r @ r.T) for r in rng.normal(size=(30, 2, 2))]
    matrices += [np.diag([2.0, 1.0]), np.diag([1.0, 2.0]), np.eye(2)]
    found = formula("ellipse", [[m.tolist()] for m in matrices])
    for matrix, one in zip(matrices, found, strict=True):
        values, vectors = np.linalg.eigh(matrix)
        assert [one["short"], one["long"]] == pytest.approx(np.sqrt(values))
        axis = np.array([math.cos(one["angle"]), math.sin(one["angle"])])
        if values[1] > 1.001 * values[0]:
            assert abs(axis @ vectors[:, 1]) == pytest.approx(1)


@in_browser
def test_the_ellipse_is_drawn_over_its_axes(tab):
    """The drawn outline has the standard deviations of the table: sharp upwards, flat across."""
    move(tab, "noise-ellipse", noise="measured")
    drawing(tab, "noise-ellipse")
    oval = box(tab, "noise-ellipse").locator("> svg .line.a")
    sides = oval.evaluate("path => { const b = path.getBBox(); return [b.width, b.height]; }")
    rows = (
        box(tab, "noise-ellipse")
        .locator("tr")
        .evaluate_all(
            "rows => Object.fromEntries(rows.map((r) => [...r.children].map((c) => c.textContent)))"
        )
    )
    sharp, flat = map(float, rows["Standard deviations of SGD"].split(", "))
    assert sides[0] / sides[1] == pytest.approx(flat / sharp, rel=0.02)


@in_browser
def test_heights_are_read_as_they_were_written(formula):
    data = explorables.landscape(views())["views"]["one"]["filters"]
    (found,) = formula("heights", [[data["heights"]]])
    assert found == heights_of(data).tolist()
    every = "".join(explorables._pair(number) for number in range(1000))
    assert formula("heights", [[every]]) == [list(range(1000))]


@in_browser
def test_seen_is_a_rotation(formula):
    rng = np.random.default_rng(0)
    cases = [
        [rng.normal(size=3).tolist(), rng.uniform(0, 360), rng.uniform(0, 90)] for _ in range(20)
    ]
    for (point, turn, tilt), found in zip(cases, formula("seen", cases), strict=True):
        a, b = np.radians([turn, tilt])
        x, y, z = point
        right, away = x * np.cos(a) - y * np.sin(a), x * np.sin(a) + y * np.cos(a)
        assert found == pytest.approx([right, away * np.sin(b) + z * np.cos(b), away])
    flat = [[[1, 0, 5], 0, 90], [[0, 1, 5], 0, 90], [[0, 0, 1], 77, 0]]
    expected = [[1, 0], [0, 1], [0, 1]]
    for one, known in zip(formula("seen", flat), expected, strict=True):
        assert one[:2] == pytest.approx(known, abs=1e-12)
