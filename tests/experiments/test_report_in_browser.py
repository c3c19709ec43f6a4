"""The page in a real Chromium, as a reader has it."""

import csv
import io
import json
from urllib.parse import unquote

import numpy as np
import pytest
from studies import make_study

from experiments.report.page import make_page
from experiments.report.pictures import Picture, PictureSet, _map_uri, _photo_uri

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402


def make_pictures():
    """Before is all class 1, after all class 2: what is shown where can be seen."""
    flat = [np.full((60, 80), label, np.uint8) for label in range(3)]
    truth, before, after = (_map_uri(labels, 255) for labels in flat)
    image = _photo_uri(np.full((60, 80, 3), 99, np.uint8))
    picture = Picture("largest gain", "street: 1.0 before", image, truth, before, after)
    return [PictureSet("cl3", "random4", 0, [picture], {"road": "rgb(0, 0, 0)"})]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    study = make_study()
    path.write_text(make_page(study, pictures=make_pictures(), resamples=50))
    return path


@pytest.fixture
def opened(browser, page):
    browser.set_window_size(1280, 900)
    browser.get(page.as_uri())
    return browser


def texts(element, selector):
    return [e.text for e in element.find_elements(By.CSS_SELECTOR, selector)]


def test_page_has_its_parts_and_nothing_goes_wrong(opened):
    assert opened.title == "poles | segloss"
    assert "Does Balance-batch find poles?" in texts(opened, ".question")
    assert texts(opened, "h2") == [
        "What came out",
        "Setting",
        "Scores",
        "While training",
        "Classes",
        "Who gets the gradient",
        "Before and after",
        "How to read the intervals",
    ]
    assert texts(opened, ".answers h3") == [
        "cl3 against random4",
        "cl3-images against random4",
    ]
    drawings = opened.find_elements(By.CSS_SELECTOR, "svg")
    # The differences, two curves of one baseline, two of classes, gradient shares.
    assert len(drawings) == 6
    for drawing in drawings:
        assert drawing.size["width"] > 300
        assert drawing.get_attribute("aria-label")
    assert opened.get_log("browser") == []


def test_nothing_is_asked_of_a_network(opened, page):
    events = [
        json.loads(e["message"])["message"] for e in opened.get_log("performance")
    ]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {e["request"]["url"] for e in sent if e["documentURL"] == page.as_uri()}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_slider_moves_by_keyboard_and_changes_the_picture(opened):
    figure = opened.find_element(By.CSS_SELECTOR, ".compare")
    slider = figure.find_element(By.CSS_SELECTOR, "input[type=range]")

    def shown_at(share):
        """The picture that is seen there, of those that lie on each other."""
        return opened.execute_script(
            """const stack = arguments[0].querySelector(".stack");
            stack.scrollIntoView({behavior: "instant", block: "center"});
            const box = stack.getBoundingClientRect();
            const x = box.left + arguments[1] * box.width;
            return document.elementFromPoint(x, box.top + box.height / 2).alt;""",
            figure,
            share,
        )

    before, after = "Prediction of random4", "Prediction of cl3"
    assert [shown_at(x) for x in (0.1, 0.47, 0.53, 0.9)] == [before] * 2 + [after] * 2
    slider.send_keys(*[Keys.ARROW_RIGHT] * 5)
    assert slider.get_attribute("value") == "55"
    assert [shown_at(x) for x in (0.53, 0.57)] == [before, after]
    slider.send_keys(Keys.HOME)
    assert shown_at(0.1) == after


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_slider_follows_a_mouse_and_a_finger_on_the_picture(opened, kind):
    stack = opened.find_element(By.CSS_SELECTOR, ".stack")
    slider = opened.find_element(By.CSS_SELECTOR, ".compare input")
    center = 'arguments[0].scrollIntoView({behavior: "instant", block: "center"})'
    opened.execute_script(center, stack)
    top = opened.execute_script("return scrollY")
    device = PointerInput(kind, kind)

    def go(*places, press=True, down=0):
        """To places in percent of the width, pressed from the first to the last."""
        chain = ActionChains(opened, duration=50, devices=[device])
        pointer = chain.w3c_actions.pointer_action
        for i, place in enumerate(places):
            x = round((place / 100 - 0.5) * stack.size["width"])
            pointer.move_to(stack, x, i * down)
            if press and i == 0:
                pointer.pointer_down()
        if press:
            pointer.pointer_up()
        chain.perform()
        return int(slider.get_attribute("value"))

    assert go(20) == pytest.approx(20, abs=1)
    # As far as it goes, in steps like those of a hand, and beyond the edge.
    assert go(20, 25, 40, 60, 80) == pytest.approx(80, abs=1)
    assert go(80, 60, 30, 5, -4) == 0
    assert opened.execute_script("return scrollY") == top
    if kind == "mouse":
        assert go(50, 70, press=False) == 0
    else:
        go(50, 50, 50, 50, down=-60)
        # A finger that moves up scrolls the page, picture or not.
        assert opened.execute_script("return scrollY") > top
    assert opened.execute_script("return getSelection().isCollapsed")


def test_what_the_keyboard_is_on_can_be_seen(opened):
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    focused = opened.switch_to.active_element
    assert focused.text == "To the content"
    style = "return getComputedStyle(arguments[0]).outlineStyle"
    assert opened.execute_script(style, focused) == "solid"


def test_colours_follow_the_system_and_the_button(opened):
    background = "return getComputedStyle(document.body).backgroundColor"
    line = "return getComputedStyle(document.querySelector('svg text')).fill"

    def prefer(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return opened.execute_script(background), opened.execute_script(line)

    light, dark = prefer("light"), prefer("dark")
    assert light[0] == "rgb(246, 247, 249)"
    assert dark[0] == "rgb(18, 22, 29)"
    assert light[1] != dark[1]
    prefer("light")
    button = opened.find_element(By.ID, "theme")
    assert button.text == "Dark"
    button.send_keys(Keys.ENTER)
    assert opened.execute_script(background) == dark[0]
    assert button.get_attribute("aria-label") == "Switch to light colours"
    opened.refresh()
    assert opened.execute_script(background) == dark[0]
    opened.execute_script("localStorage.clear()")


@pytest.mark.parametrize("width", [360, 768])
def test_page_never_scrolls_sideways(opened, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.refresh()
    root = "document.documentElement"
    inner, outer = opened.execute_script(
        f"return [{root}.scrollWidth, {root}.clientWidth]"
    )
    assert inner <= outer == width
    # Tables do, in boxes of their own that the keyboard reaches.
    boxes = opened.find_elements(By.CSS_SELECTOR, ".table .scroll[tabindex='0']")
    assert boxes
    assert any(
        opened.execute_script("return arguments[0].scrollWidth", box) > width
        for box in boxes
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_csv_equals_the_table(opened):
    for table in opened.find_elements(By.CSS_SELECTOR, ".table"):
        link = table.find_element(By.CSS_SELECTOR, "a.csv")
        assert link.get_attribute("download").endswith(".csv")
        text = unquote(link.get_attribute("href").split(",", 1)[1])
        cells = opened.execute_script(
            "return [...arguments[0].querySelectorAll('tr')].map("
            "(row) => [...row.cells].map((cell) => cell.textContent))",
            table,
        )
        assert list(csv.reader(io.StringIO(text))) == cells


def test_every_picture_table_and_slider_has_a_name(opened):
    assert opened.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    for selector, attribute in (("img", "alt"), ("input", "aria-label")):
        for element in opened.find_elements(By.CSS_SELECTOR, selector):
            assert element.get_attribute(attribute), selector
    tables = opened.find_elements(By.TAG_NAME, "table")
    captions = opened.find_elements(By.CSS_SELECTOR, "table > caption")
    assert len(tables) == len(captions) == 4
