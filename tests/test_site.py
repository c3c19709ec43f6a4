"""The built documentation in a real Chromium, as a reader has it: `make docs` first."""

import functools
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import segloss.config
import segloss.data
import segloss.data.samplers
import segloss.losses
import segloss.metrics
import segloss.models
import segloss.train
import segloss.trained

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SITE = Path(__file__).parents[1] / "build/docs"
pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="needs the site: make docs"
)
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
FACTS = """
const root = document.documentElement;
return {
  width: root.scrollWidth,
  scrolling: [...document.querySelectorAll("body *:not(pre, .table-wrapper, svg *)")]
    .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
    .filter((e) => getComputedStyle(e).overflowX !== "visible")
    .map((e) => `${e.tagName} ${e.className}`),
  links: [...document.querySelectorAll("a[href]")].map((a) => a.href),
  ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
  broken: [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src),
  nameless: [...document.images].filter((i) => !i.alt).map((i) => i.src),
};
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def phone(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    return browser


@pytest.fixture(scope="module")
def pages(phone, address):
    """What each page holds once its scripts have run, on a narrow screen."""
    found = {}
    for path in sorted(SITE.rglob("*.html")):
        url = address + path.relative_to(SITE).as_posix()
        phone.get(url)
        found[url] = phone.execute_script(FACTS)
    return found


@pytest.fixture(scope="module")
def requests(browser, pages):
    """The addresses of all that the pages asked for."""
    events = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {e["request"]["url"] for e in sent}


def test_no_link_is_broken(pages, address):
    broken = []
    for page, facts in pages.items():
        for link in {link for link in facts["links"] if link.startswith(address)}:
            target, anchor = urldefrag(link)
            target += "index.html" if target.endswith("/") else ""
            path = SITE / unquote(urlsplit(target).path).lstrip("/")
            anchored = not anchor or (
                target in pages and unquote(anchor) in pages[target]["ids"]
            )
            if not (path.is_file() and anchored):
                broken.append(f"{page} -> {link}")
    assert not broken
    # So that a menu without entries is no success.
    assert sum(len(facts["links"]) for facts in pages.values()) > 1000


def test_pictures_load_and_have_a_name(pages):
    for page, facts in pages.items():
        assert not facts["broken"], page
        assert not facts["nameless"], page


def test_nothing_comes_from_another_server(requests, address):
    assert f"{address}index.html" in requests
    # Chromium's own first page asks for chrome:// addresses.
    own = (address, "data:", "chrome:", "chrome-untrusted:")
    foreign = {url for url in requests if not url.startswith(own)}
    assert not foreign


def test_no_script_fails(browser, pages):
    assert browser.get_log("browser") == []


def test_no_page_scrolls_sideways_on_a_narrow_screen(pages):
    """Tables and code do, in boxes of their own; the text around them does not."""
    wide = {p: f["width"] for p, f in pages.items() if f["width"] > PHONE["width"]}
    assert not wide
    scrolling = {p: f["scrolling"] for p, f in pages.items() if f["scrolling"]}
    assert not scrolling


def test_every_public_name_is_in_the_api_reference(pages, address):
    for module in (
        segloss.losses,
        segloss.metrics,
        segloss.data,
        segloss.data.samplers,
        segloss.models,
        segloss.config,
        segloss.train,
        segloss.trained,
    ):
        name = module.__name__.rpartition(".")[2]
        ids = {
            i
            for p in ("samplers", name)
            for i in pages[f"{address}api/{p}.html"]["ids"]
        }
        for public in module.__all__:
            if callable(getattr(module, public)):
                places = {f"{module.__name__}.{public}"}
                if module is segloss.data:
                    places.add(f"segloss.data.samplers.{public}")
                assert places & ids, public


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("soft_dice", "api/losses.html#segloss.losses.soft_dice"),
        ("BalanceBatch", "api/samplers.html#segloss.data.samplers.BalanceBatch"),
        ("batch_cl", "balance_batch.html"),
    ],
)
def test_search_finds(browser, address, words, target):
    browser.get(f"{address}search.html?q={words}")

    def results(driver):
        links = driver.find_elements(By.CSS_SELECTOR, "#search-results li > a")
        hrefs = [urldefrag(a.get_attribute("href")) for a in links]
        found = {
            "#".join(filter(None, (h.url.split("?")[0], h.fragment))) for h in hrefs
        }
        return f"{address}{target}" in found

    WebDriverWait(browser, 20).until(results, f"{words}: {target} is not found")
