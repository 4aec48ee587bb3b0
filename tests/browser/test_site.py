"The built site: no dead link, no broken picture, no console error, equations without a network."

import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import DRAWN_ALIKE

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_docs" / "html"
NOISE = "Got invalid theme mode"  # the theme says so of a browser without a stored choice


class Targets(HTMLParser):
    "Everything that a page points at, and the anchors that it offers."

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        given = dict(attrs)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        target = given.get({"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag, ""))
        if target:
            self.links.append(target)


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        pytest.importorskip("sphinx", reason="needs the extra docs")
        subprocess.run([sys.executable, str(ROOT / "docs" / "build.py")], check=True)
    return SITE


@pytest.fixture(scope="session")
def pages(site) -> dict[Path, Targets]:
    parsed = {}
    for path in (p for p in site.rglob("*.html") if "_static" not in p.parts):
        parsed[path.resolve()] = Targets()
        parsed[path.resolve()].feed(path.read_text(encoding="utf8"))
    return parsed


def test_no_link_inside_the_site_is_dead(site, pages):
    dead = defaultdict(list)
    for page, targets in pages.items():
        for link in targets.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not path.exists():
                dead[page.name].append(link)
            elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].anchors:
                dead[page.name].append(link)
    assert not dead, dict(dead)


def test_no_page_shows_a_directive_line(pages):
    shown = [page.name for page in pages if "#| " in page.read_text(encoding="utf8")]
    assert not shown


def test_pages_open_without_error_and_with_their_pictures(site, pages, browser, screenshots):
    page, faults = browser.new_page(viewport={"width": 1366, "height": 900}), []
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" and NOISE not in m.text else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
    broken = "() => [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    found = {}
    for path in sorted(pages):
        if path.parent != site.resolve() and path.parent.name not in ("reports", "exercises"):
            continue
        faults.clear()
        page.goto(path.as_uri(), wait_until="load")
        pictures = page.evaluate(broken)
        name = "_".join(path.relative_to(site.resolve()).with_suffix("").parts)
        page.screenshot(path=screenshots / f"site_{name}.png")
        if faults or pictures:
            found[name] = [*faults, *pictures]
    page.close()
    assert not found, found


def test_equations_are_drawn(site, browser):
    page = browser.new_page()
    page.goto((site / "07_mlm.html").as_uri(), wait_until="load")
    page.wait_for_selector("mjx-container", timeout=20_000)
    assert "\\frac" not in page.inner_text("article")
    page.close()


def test_code_of_110_columns_fits_a_laptop_and_nothing_overflows_a_phone(site, browser, screenshots):
    too_wide = """() => [...document.querySelectorAll('div.cell_input pre')]
        .filter(p => p.scrollWidth > p.clientWidth + 2).map(p => p.innerText.slice(0, 80))"""
    pages = [*sorted(site.glob("[01]*.html")), site / "index.html", site / "api" / "bertlab.training.html"]
    laptop, phone = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
    page, found = browser.new_page(viewport=laptop), {}
    for path in pages:
        page.set_viewport_size(laptop)
        page.goto(path.as_uri(), wait_until="load")
        wide = page.evaluate(too_wide)
        page.set_viewport_size(phone)
        page.wait_for_timeout(300)
        page.screenshot(path=screenshots / f"phone_{path.stem}.png")
        if wide or page.evaluate("document.documentElement.scrollWidth") > 392:
            found[path.stem] = wide
    page.close()
    assert not found, found


def test_hangul_is_drawn_as_hangul(site, browser):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri(), wait_until="load")
    page.evaluate("() => document.fonts.load('40px bertlab-hangul', '한국')")
    assert not page.evaluate(DRAWN_ALIKE, ["한", "국"])  # without a font, both are the same empty box
    assert "bertlab-hangul" in page.evaluate("getComputedStyle(document.body).fontFamily")
    page.close()
