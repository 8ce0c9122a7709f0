"""The built book in headless Chromium: every page, wide and narrow, light and dark, no network."""

from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest

from built_book import HTML, browser_page, open_page, pages, serve

pytestmark = pytest.mark.browser

WIDE, NARROW = 1280, 390
# Two messages of the theme that stand for nothing.
HARMLESS = ("THEBE_JS_URL", "invalid theme mode")
LOOK = """async () => {
  const article = document.querySelector("article") || document.body;
  const plain = article.cloneNode(true);
  plain.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
  const images = [...article.querySelectorAll("img")].filter(e => e.offsetParent !== null);
  const broken = [];
  for (const image of images) {
    image.loading = "eager";
    try { await image.decode(); } catch { broken.push(image.src.slice(0, 90)); }
  }
  const formulas = article.querySelectorAll("span.math, div.math");
  const shape = e => e.tagName.toLowerCase() + "." + e.className;
  const hides = e => e.scrollWidth > e.clientWidth + 1
    && !["auto", "scroll"].includes(getComputedStyle(e).overflowX)
    && !e.closest("div.math, .highlight, table");
  return {
    mode: document.documentElement.dataset.theme,
    broken,
    unnamed: images.filter(e => !e.alt.trim()).map(e => e.src.slice(0, 90)),
    unset: [...formulas].filter(e => !e.querySelector("mjx-container")).map(e => e.innerText),
    wrong: [...article.querySelectorAll("mjx-merror")].map(e => e.innerText),
    raw: plain.innerText.match(/\\$\\$|\\\\[\\[(]|\\{(eq|ref|cite|math|numref)[^}]*\\}/g) || [],
    clipped: [...article.querySelectorAll("pre, mjx-container[display]")].filter(hides).map(shape),
    wider: document.scrollingElement.scrollWidth - window.innerWidth,
    culprits: [...document.querySelectorAll("article *")]
      .filter(e => !e.closest("pre, mjx-container, table, svg"))
      .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1
        || (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible"
            && getComputedStyle(e).display !== "inline"))
      .slice(0, 5).map(shape),
  };
}"""


@cache
def _page_names():
    return pages(HTML) if HTML.exists() else []


@pytest.fixture(scope="module")
def address():
    """Address of the served book."""
    if not _page_names():
        pytest.fail("there is no built book: run `make book` first")
    with serve(HTML) as url:
        yield url


@contextmanager
def _watched(page):
    """Collect what goes wrong while pages load: errors of scripts, requests that fail."""
    seen = []
    page.on("console", lambda m: seen.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: seen.append(f"script: {error}"))
    page.on("requestfailed", lambda r: seen.append(f"failed: {r.url[:120]}"))
    page.on("response", lambda r: seen.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    yield seen


def _complaints(look, mode):
    """Turn what the page says about itself into complaints."""
    keys = ("broken", "unnamed", "unset", "wrong", "raw", "clipped")
    found = [f"{key}: {look[key]}" for key in keys if look[key]]
    if look["wider"] > 0:
        found.append(f"{look['wider']} px wider than the window: {look['culprits']}")
    if look["mode"] != mode:
        found.append(f"the page is {look['mode']}, not {mode}")
    return found


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_page_is_sound(address, width, mode):
    problems = {}
    with browser_page(width, mode) as page, _watched(page) as seen:
        for name in _page_names():
            seen.clear()
            open_page(page, f"{address}/{name}.html")
            found = [text for text in seen if not any(word in text for word in HARMLESS)]
            found += _complaints(page.evaluate(LOOK), mode)
            if found:
                problems[name] = found
    assert not problems


@pytest.mark.parametrize(("width", "mode"), [(WIDE, "light"), (NARROW, "dark")])
def test_sliders_change_the_picture(address, width, mode):
    with browser_page(width, mode) as page:
        for name in _page_names():
            if 'class="course-figure course-viewer"' not in (HTML / f"{name}.html").read_text(
                "utf-8"
            ):
                continue
            open_page(page, f"{address}/{name}.html")
            for viewer in page.locator(".course-viewer").all():
                slider, picture = viewer.locator("input[type=range]"), viewer.locator("img:visible")
                slider.scroll_into_view_if_needed()
                before = picture.first.screenshot()
                slider.focus()
                slider.press("End")
                assert picture.first.screenshot() != before, name
                assert slider.get_attribute("aria-valuetext"), name


@pytest.mark.parametrize(("width", "mode"), [(WIDE, "light"), (NARROW, "dark")])
def test_menus_and_sliders_change_the_trajectories(address, width, mode):
    with browser_page(width, mode) as page:
        for name in _page_names():
            if 'class="course-figure course-trajectories"' not in (HTML / f"{name}.html").read_text(
                "utf-8"
            ):
                continue
            open_page(page, f"{address}/{name}.html")
            for viewer in page.locator(".course-trajectories").all():
                picture, slider = viewer.locator("svg"), viewer.locator("input[type=range]")
                slider.scroll_into_view_if_needed()
                seen = [picture.screenshot()]
                for menu in viewer.locator("select").all():
                    other = menu.evaluate("e => Number(e.selectedIndex === 0)")
                    menu.select_option(index=other)
                    seen.append(picture.screenshot())
                slider.focus()
                slider.press("Home")
                seen.append(picture.screenshot())
                assert len(set(seen)) == len(seen), name
                assert slider.get_attribute("aria-valuetext"), name


def test_search_finds_a_page_and_opens_it(address):
    with browser_page(WIDE, "light") as page:
        open_page(page, f"{address}/intro.html")
        page.keyboard.press("Control+k")
        page.keyboard.type("denoising")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=denoising*")
        results = page.locator("#search-results li a")
        results.first.wait_for()
        results.first.click()
        page.wait_for_url(lambda url: "search.html" not in url)
        assert "denoising" in page.inner_text("article").lower()


def test_the_first_page_opens_without_its_name(address):
    with browser_page(WIDE, "light") as page:
        page.goto(f"{address}/index.html")
        page.wait_for_url("**/intro.html")


def test_the_map_is_legible_on_a_phone(address):
    with browser_page(NARROW, "light") as page:
        open_page(page, f"{address}/intro.html")
        sizes = page.evaluate(
            """() => [...document.querySelectorAll(".course-map text, .course-map tspan")].map(e =>
                 parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a)"""
        )
    assert min(sizes) >= 11


class _Links(HTMLParser):
    """The addresses that a page names, and the anchors that it offers."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        for key in ("href", "src"):
            if found.get(key):
                self.targets.add(found[key])


@cache
def _links(path):
    return _Links(path.read_text(encoding="utf-8"))


def _is_dead(target, page):
    """Whether an address inside the book leads nowhere."""
    if target.startswith(("http:", "https:", "data:", "mailto:", "javascript:")):
        return False
    place, anchor = urldefrag(unquote(target))
    path = (page.parent / place.partition("?")[0]).resolve() if place else page
    if not path.exists():
        return True
    return bool(anchor) and path.suffix == ".html" and anchor not in _links(path).anchors


def test_links_inside_the_book_lead_somewhere(address):
    dead = {
        name: found
        for name in _page_names()
        if (
            found := [
                t
                for t in _links(HTML / f"{name}.html").targets
                if _is_dead(t, HTML / f"{name}.html")
            ]
        )
    }
    assert not dead


def test_nothing_is_loaded_from_elsewhere(address):
    for name in _page_names():
        text = (HTML / f"{name}.html").read_text(encoding="utf-8")
        assert 'src="http' not in text, name
        assert 'rel="stylesheet" href="http' not in text, name
