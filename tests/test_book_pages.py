"""Every page of the built book, opened from its file in a real browser."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from losslandscape.doctor import find_browser
from losslandscape.report.outputs import compare_folders

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if not {"_static", "_sources"} & set(path.relative_to(HTML).parts) and path.name != "index.html"
)
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
CHROMIUM = find_browser()
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
LIGHT = 1.5e6  # bytes
READABLE = 4.5  # WCAG AA; 3 for large letters
PATIENCE = 180_000  # milliseconds: machines that test are busy
# The slow axe-core sees each width and each theme once: its rules know the one or the other.
AXE = ((DESK, "light"), (PHONE, "dark"))


def why_not() -> str:
    """Return the reason why no page can be opened, "" when all is there."""
    if not PAGES:
        return "the book is not built: run `make book` first"
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if CHROMIUM is None:
        return "no Chromium or Chrome found: install one, or set CHROMIUM to its path"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
each_page = pytest.mark.parametrize("page", PAGES or ["no page"])
each_chapter = pytest.mark.parametrize("page", CHAPTERS or ["no chapter"])


@dataclass
class Visit:
    """What the browser saw of one page."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # LOOK's answers on a desk, in light mode
    faint: dict = field(default_factory=dict)  # theme: texts that are hard to read
    desk_width: int = 0
    phone_width: int = 0
    too_wide: list[str] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)  # formulas in a sentence, on a phone
    stray: list[str] = field(default_factory=list)  # those with their full stop on the next line
    violations: dict = field(default_factory=dict)  # place of AXE: what axe-core objects to


LOOK = """() => {
  const all = (query) => [...document.querySelectorAll(query)];
  const seen = (box) => box.checkVisibility({visibilityProperty: true, opacityProperty: true});
  return {
    plainMath: all("span.math, div.math").filter((m) => !m.querySelector("mjx-container"))
      .map((m) => m.textContent.slice(0, 80)),
    wrongMath: all("mjx-merror, mjx-container [data-mml-node=merror]").map((m) => m.textContent),
    noAlt: all("img").filter((i) => i.getAttribute("role") !== "presentation")
      .filter((i) => !(i.getAttribute("alt") || "").trim()).map((i) => i.src),
    broken: all("img").filter((i) => !i.complete || !i.naturalWidth).map((i) => i.src),
    searchBars: all(".search-button-field, input[type=search]").filter(seen).length,
    links: all("a[href]").map((a) => a.href),
    openSolutions: all(".solution").filter((s) => s.classList.contains("dropdown"))
      .filter((s) => !s.classList.contains("toggle-hidden")).length,
    unfoldable: all(".solution").filter((s) => !s.matches(".dropdown, details *")).length,
    openDetails: all(".bd-article details[open]").length,
    stretched: all(".bd-article blockquote, .bd-article .admonition").filter(seen)
      .filter((box) => box.lastElementChild && box.getBoundingClientRect().bottom
        - box.lastElementChild.getBoundingClientRect().bottom > 60)
      .map((box) => box.textContent.trim().slice(0, 60)),
    headings: all(".bd-article h1").length,
    levels: all(".bd-article :is(h1, h2, h3, h4, h5, h6)").map((h) => Number(h.tagName[1])),
    explorables: all(".explorable").map((holder) => {
      const twin = JSON.parse(holder.textContent).twin;
      const box = document.getElementById(twin)?.querySelector(".explorable-box");
      const lines = [...box?.querySelectorAll(":scope > svg path") ?? []];
      return {
        name: `${holder.dataset.figure} over ${twin}`,
        drawn: lines.filter((line) => line.getTotalLength() > 0).length,
        said: box?.querySelector(".status")?.textContent ?? "",
        values: box?.querySelector("table")?.textContent ?? "",
        wrong: box?.innerHTML.match(/NaN|Infinity|undefined|\\[object/g) ?? [],
      };
    }),
    language: document.documentElement.lang,
  };
}"""

TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1)
  .map((e) => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`).slice(0, 8)"""

CUT_OFF = """() => [...document.querySelectorAll(".bd-article span.math mjx-container")]
  .filter((m) => m.checkVisibility() && !m.closest(".scrolls"))
  .filter((m) => m.getBoundingClientRect().right
    > Math.min(m.parentElement.getBoundingClientRect().right + 1, window.innerWidth))
  .map((m) => m.textContent.slice(0, 60))"""

UNFOLD = """() => {
  for (const box of document.querySelectorAll(".toggle-hidden")) {
    box.classList.remove("toggle-hidden");
  }
  for (const box of document.querySelectorAll("details")) box.open = true;
  window.dispatchEvent(new Event("resize"));
}"""

STRAY = """() => [...document.querySelectorAll(".bd-article span.math")].filter((m) => {
  const mark = m.nextSibling;
  if (mark?.nodeType !== 3 || !/^[.,;:!?)]/.test(mark.data) || !m.checkVisibility()) return false;
  const letter = document.createRange();
  letter.setStart(mark, 0);
  letter.setEnd(mark, 1);
  return letter.getBoundingClientRect().left < m.getBoundingClientRect().right - 20;
}).map((m) => m.parentElement.textContent.slice(0, 60))"""

# Without its slow test of colours: FAINT makes the same one, in both themes.
AXE_RULES = """() => axe.run(document, {preload: false, resultTypes: ["violations"], rules: {
  "color-contrast": {enabled: false}, "label-content-name-mismatch": {enabled: true}}})
  .then((found) => found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => `${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 4).join("; ")}`))"""

FAINT = """() => {
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const known = new Map();
  const rgba = (css) => {
    if (!known.has(css)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = css; pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      known.set(css, [r, g, b, a / 255]);
    }
    return known.get(css);
  };
  const over = (top, under) => under.map((u, i) => top[i] * top[3] + u * (1 - top[3]));
  const ground = (box) => {
    const layers = [];
    for (let b = box; b; b = b.parentElement) layers.push(getComputedStyle(b).backgroundColor);
    return layers.reverse().map(rgba).reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Set();
  for (const box of document.querySelectorAll(".bd-article *, .bd-sidebar-primary *")) {
    const own = [...box.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !box.checkVisibility()) continue;
    if (box.closest("svg, mjx-container, script, style")) continue;
    if (box.matches(".headerlink, .copybtn *")) continue;  // shown on hover only
    const style = getComputedStyle(box);
    const under = ground(box);
    const [a, b] = [light(over(rgba(style.color), under)), light(under)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : READABLE)) {
      const name = box.tagName.toLowerCase() + (box.className ? "." + box.className : "");
      found.add(`${name} ${contrast.toFixed(1)} "${box.textContent.trim().slice(0, 30)}"`);
    }
  }
  return [...found].slice(0, 12);
}""".replace("READABLE", str(READABLE))

TYPESET = "() => window.MathJax?.startup?.promise ? MathJax.startup.promise.then(() => 1) : 1"


def axe_script() -> str:
    """Return the source of axe-core, "" where its package is not installed."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        return ""
    return Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser):
    """Return a function that opens a page once and remembers what it saw."""
    visits: dict[str, Visit] = {}

    def see(page: str) -> Visit:
        if page not in visits:
            visits[page] = _visit(browser, page)
        return visits[page]

    return see


def _visit(browser, page: str) -> Visit:
    seen = Visit()
    tab = _new_tab(browser)
    tab.on("request", lambda request: seen.requests.append(request.url))
    tab.on("pageerror", lambda error: seen.errors.append(str(error)))
    tab.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    tab.goto((HTML / page).as_uri(), wait_until="load")
    tab.evaluate(TYPESET)
    tab.wait_for_timeout(100)
    seen.facts = tab.evaluate(LOOK)
    axe = axe_script()
    if axe:
        tab.evaluate(axe)
    for screen in (DESK, PHONE):
        tab.set_viewport_size(screen)
        tab.wait_for_timeout(400)  # the theme answers a change of width after a while
        for theme in ("light", "dark"):
            tab.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            seen.faint.setdefault(theme, []).extend(tab.evaluate(FAINT))
            if axe and (screen, theme) in AXE:
                seen.violations[screen["width"], theme] = tab.evaluate(AXE_RULES)
        if screen is DESK:
            seen.desk_width = tab.evaluate("document.documentElement.scrollWidth")
    seen.phone_width = tab.evaluate("document.documentElement.scrollWidth")
    if seen.phone_width > PHONE["width"]:
        seen.too_wide = tab.evaluate(TOO_WIDE)
    tab.evaluate(UNFOLD)
    seen.cut_off = tab.evaluate(CUT_OFF)
    seen.stray = tab.evaluate(STRAY)
    tab.close()
    return seen


def _new_tab(browser):
    """Open a tab in which nothing moves, so that no colour is caught on its way to another."""
    tab = browser.new_page(viewport=DESK, reduced_motion="reduce")
    tab.set_default_timeout(PATIENCE)
    return tab


@each_page
def test_no_request_leaves_the_book(visit, page):
    local = ("file:", "data:", "blob:", "about:")
    assert [url for url in visit(page).requests if not url.startswith(local)] == []


@each_page
def test_no_script_fails(visit, page):
    assert visit(page).errors == []


@each_page
def test_all_math_is_typeset(visit, page):
    assert visit(page).facts["plainMath"] == []
    assert visit(page).facts["wrongMath"] == []


@each_page
def test_every_picture_loads_and_has_alternative_text(visit, page):
    assert visit(page).facts["broken"] == []
    assert visit(page).facts["noAlt"] == []


@each_page
def test_a_phone_needs_no_sideways_scrolling(visit, page):
    assert visit(page).phone_width <= PHONE["width"], visit(page).too_wide


@each_page
def test_a_desk_needs_no_sideways_scrolling(visit, page):
    assert visit(page).desk_width <= DESK["width"]


@each_page
def test_no_formula_in_a_sentence_is_cut_off_on_a_phone(visit, page):
    assert visit(page).cut_off == []


@each_page
def test_no_line_begins_with_the_full_stop_after_a_formula(visit, page):
    assert visit(page).stray == []


@each_page
@pytest.mark.skipif(not axe_script(), reason="axe-playwright-python is not installed")
def test_axe_finds_nothing_serious(visit, page):
    assert {where: found for where, found in visit(page).violations.items() if found} == {}
    assert len(visit(page).violations) == len(AXE)


@each_page
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable(visit, page, theme):
    assert visit(page).faint[theme] == []


@each_page
def test_there_is_one_search_bar_and_one_title(visit, page):
    searching = page == "search.html"  # this page has its own field as well
    assert visit(page).facts["searchBars"] <= 1 + searching
    assert visit(page).facts["headings"] == 1 or searching
    assert visit(page).facts["language"] == "en"


@each_page
def test_no_link_inside_the_book_is_dead(visit, page):
    local = {urlsplit(url) for url in visit(page).facts["links"] if url.startswith("file:")}
    assert [url.path for url in local if not Path(unquote(url.path)).exists()] == []


@pytest.fixture(scope="module")
def outcomes():
    fresh = compare_folders(ROOT / "notebooks", ROOT / "_build" / "site" / "notebooks")
    return {finding.chapter: finding for finding in fresh}


@each_chapter
def test_a_chapter_says_what_its_stored_notebook_says(outcomes, page):
    """What nbval asks, of the execution that made the page."""
    found = outcomes[Path(page).stem]
    if found.word == "as stored":  # which chapters are executed is a choice of `make book`
        pytest.skip(found.text)
    if found.word == "not compared":  # built with other parameters, or not since its text changed
        pytest.skip(found.text)
    assert found.word in ("same", "within tolerance"), found.text


@each_page
def test_a_page_is_light(page):
    text = (HTML / page).read_text(encoding="utf-8")
    images = set(re.findall(r"_images/([^\"'?]+)", text))
    weight = len(text.encode()) + sum((HTML / "_images" / name).stat().st_size for name in images)
    assert weight < LIGHT, f"{weight / 1e6:.2f} MB without the files that all pages share"


@each_page
def test_headings_descend_one_step_at_a_time(visit, page):
    levels = visit(page).facts["levels"]
    assert [pair for pair in pairwise(levels) if pair[1] > pair[0] + 1] == []


@each_page
def test_no_box_is_stretched_by_its_neighbour(visit, page):
    assert visit(page).facts["stretched"] == []


@each_page
def test_solutions_are_folded(visit, page):
    facts = visit(page).facts
    assert facts["openSolutions"] == facts["openDetails"] == facts["unfoldable"] == 0


def test_a_wide_formula_scrolls_as_soon_as_its_solution_is_unfolded(browser):
    tab = _new_tab(browser)
    tab.set_viewport_size(PHONE)
    tab.goto((HTML / "notebooks/08_rescaling.html").as_uri(), wait_until="load")
    tab.evaluate(TYPESET)
    wide = tab.locator(".solution span.math.wide.scrolls[tabindex='0']")
    assert wide.count() == 0
    for button in tab.locator(".solution").locator(".toggle-button, summary").all():
        button.click()
    wide.first.wait_for()
    tab.close()


@each_chapter
def test_a_chapter_offers_its_notebook_and_its_text(visit, page):
    links = visit(page).facts["links"]
    name = Path(page).stem
    files = [link for link in links if link.endswith(f"_sources/notebooks/{name}.ipynb")]
    assert files, "no link downloads the executed notebook"
    assert "execution_count" in Path(unquote(urlsplit(files[0]).path)).read_text(encoding="utf-8")
    assert any(link.endswith(f"/edit/main/notebooks/{name}.md") for link in links), "edit link"
    assert any("mybinder.org" in link for link in links), "Binder link"
    assert any("colab.research.google.com" in link for link in links), "Colab link"
    assert any("/issues/new" in link for link in links), "issue link"


@each_chapter
def test_every_explorable_figure_is_drawn(visit, page):
    figures = visit(page).facts["explorables"]
    text = (ROOT / page).with_suffix(".md").read_text(encoding="utf-8")
    assert len(figures) == len(re.findall(r"^(?:explorables\.)?explorable\(", text, re.MULTILINE))
    for figure in figures:
        assert figure["drawn"] >= 2, f"{figure['name']} is not drawn"
        assert figure["said"].strip(), f"{figure['name']} says nothing"
        assert figure["values"].strip(), f"{figure['name']} has no table"
        assert figure["wrong"] == [], figure["name"]


def test_the_keyboard_sees_and_keeps_its_place(browser):
    tab = _new_tab(browser)
    tab.goto((HTML / "book" / "intro.html").as_uri(), wait_until="load")
    buttons = (".search-button-field", ".primary-toggle", ".bd-header-article .dropdown-toggle")
    for button in buttons:
        box = tab.locator(button).first
        box.focus()
        assert box.evaluate("box => getComputedStyle(box).outlineStyle") == "solid", button
    switch = tab.locator(".theme-switch-button").first
    for _ in range(3):
        switch.press("Enter")
        tab.wait_for_timeout(100)
        assert switch.evaluate("box => box === document.activeElement")
    tab.close()


def test_a_term_shows_its_definition_to_the_keyboard(browser):
    tab = _new_tab(browser)
    tab.goto((HTML / "notebooks/03_power_iteration.html").as_uri(), wait_until="load")
    hint = tab.locator(".hint").first
    definition = hint.get_by_role("tooltip", include_hidden=True)
    assert not definition.is_visible()
    hint.get_by_role("link").focus()
    assert definition.is_visible()
    assert len(definition.inner_text()) > 40
    described = hint.get_by_role("link").get_attribute("aria-describedby")
    assert definition.get_attribute("id") == described
    tab.keyboard.press("Escape")
    assert not definition.is_visible()
    tab.close()


def test_no_definition_leaves_a_phone_s_screen(browser):
    tab = _new_tab(browser)
    tab.set_viewport_size(PHONE)
    tab.goto((HTML / "notebooks/03_power_iteration.html").as_uri(), wait_until="load")
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for hint in tab.locator(".hint").all():
        hint.get_by_role("link").focus()
        box = hint.get_by_role("tooltip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    tab.close()


def test_the_letters_of_a_chapter_are_folded_on_a_phone_only(browser):
    for screen, folded in ((PHONE, 1), (DESK, 0)):
        tab = browser.new_page(viewport=screen)
        tab.set_default_timeout(PATIENCE)
        tab.goto((HTML / "notebooks/07_sgd_noise.html").as_uri(), wait_until="load")
        title = tab.get_by_text("Letters of this chapter")
        letters = tab.locator("aside.margin li").first
        assert tab.locator("aside.margin details:not([open])").count() == folded
        assert letters.is_visible() != bool(folded)
        if folded:
            title.focus()
            title.press("Enter")
            assert letters.is_visible()
        tab.close()


def test_the_search_page_finds_a_word(browser):
    tab = _new_tab(browser)
    tab.goto((HTML / "search.html").as_uri() + "?q=notation")
    tab.wait_for_selector("#search-results li a")
    titles = tab.locator("#search-results li a").all_inner_texts()
    tab.close()
    assert any("notation" in title.lower() for title in titles), titles


def test_the_archive_holds_what_the_numbers_come_from():
    with zipfile.ZipFile(HTML / "_downloads" / "loss-landscape-geometry.zip") as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        text = archive.read("book/claims.yml").decode("utf-8")
    records = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("book/records/*/*.json")}
    assert records <= names
    assert {f"{page.removesuffix('.html')}.ipynb" for page in CHAPTERS} <= names
    assert text == (ROOT / "book" / "claims.yml").read_text(encoding="utf-8")


def test_index_leads_to_the_first_page(browser):
    tab = _new_tab(browser)
    tab.goto((HTML / "index.html").as_uri())
    tab.wait_for_url("**/book/intro.html")
    tab.close()
