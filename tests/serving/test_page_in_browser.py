"""The page as people use it: in a real browser, against real servers, and against one that fails on purpose."""

import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from browser import chromium
from reczero.serving.app import PAGE
from reczero.serving.guard import HEADERS

HOSTILE = "<img src=x onerror=alert(1)>"
QUOTES = "It's \"so\" 'good'; $HOME `id` \\ !! \u009b %s"
KEY = "correct-horse-battery"
SECONDS = 20.0


class Window:
    """A browser's tab, and what the tests do in it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url: str, width: int = 1200, dark: bool = False) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get_log("browser")
        self.driver.get(url)

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def all(self, selector: str) -> list:
        """Those that are shown."""
        found = self.driver.find_elements("css selector", selector)
        return [one for one in found if one.is_displayed()]

    def one(self, selector: str):
        (found,) = self.all(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        return [one.text for one in self.all(selector)]

    def wait(self, true) -> None:
        """Until this is true. What is looked at may be replaced meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, SECONDS, 0.02, [StaleElementReferenceException])
        wait.until(lambda _: true(), "it did not come to pass")

    def wait_for(self, selector: str, count: int = 1) -> None:
        self.wait(lambda: len(self.all(selector)) == count)

    def press(self, *keys: str) -> None:
        """Where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def fill(self, selector: str, text: str, place: int = 0) -> None:
        field = self.all(selector)[place]
        field.clear()
        field.send_keys(text)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
        """Where anything was asked for since the page was opened."""
        names = self.js("return performance.getEntries().map(entry => entry.name)")
        parts = [urlsplit(name) for name in names if "://" in name]
        return {f"{part.scheme}://{part.netloc}/" for part in parts}

    def overflow(self) -> int:
        return self.js("return document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(scope="module")
def window():
    with chromium() as driver:
        yield Window(driver)


def predicted(window: Window, cards: int = 1) -> list[str]:
    """Waits for the ratings."""
    window.wait(lambda: len(window.all(".verdict .number b")) == cards and not window.all("#cancel"))
    return window.texts(".verdict .number b")


def copied(window: Window) -> str:
    origin = window.js("return location.origin")
    permissions = {"origin": origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    window.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    window.one("#curl").click()
    window.wait(lambda: window.one("#curl").text.startswith("Copied"))
    return window.driver.execute_async_script("const done = arguments[0]; navigator.clipboard.readText().then(done)")


def ratings_of(command: str, **environment: str) -> list[float]:
    """What the copied command answers, from a shell."""
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    result = subprocess.run(
        ["/bin/sh"], input=command, capture_output=True, text=True, check=True, timeout=60, env=os.environ | environment
    )  # fmt: skip
    lines = result.stdout.splitlines()
    told = [lines[place + 1] for place, line in enumerate(lines) if line == "event: prediction"]
    return [json.loads(line.removeprefix("data: "))["rating"] for line in told]


# --- with a data set --------------------------------------------------------------------------------------------------


def test_by_keyboard_from_the_data_set(window, served):
    from selenium.webdriver.common.keys import Keys

    window.open(served.url)
    window.wait(lambda: window.all("#user .past li"))  # the first user, chosen so that the first click predicts
    assert window.texts("#facts dd") == ["tiny", "table", "1 to 5"]
    window.press(Keys.TAB, Keys.TAB)
    focus = window.driver.switch_to.active_element
    assert (focus.get_attribute("role"), focus.accessible_name) == ("combobox", "User id")
    window.press("u")
    window.wait_for("[role=option]", 10)
    window.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    active = focus.get_attribute("aria-activedescendant")
    assert focus.get_attribute("aria-expanded") == "true"
    assert window.all("[role=option][aria-selected=true]") == [window.one(f"#{active}")]
    name = window.one(f"#{active} span").text
    window.press(Keys.ENTER)
    assert focus.get_attribute("value") == name and not window.all("[role=listbox]")
    window.wait(lambda: window.all("#user .past li"))
    assert all(text.startswith("</rate> Film") for text in window.texts("#user .past li span"))

    window.press(Keys.TAB, Keys.TAB)
    item = window.driver.switch_to.active_element
    window.press("film 7", Keys.ENTER)  # sooner than the list comes
    window.wait(lambda: item.get_attribute("value") == "</rate> Film 7")
    window.press(Keys.ARROW_DOWN)
    window.wait_for("[role=option]", 20)
    window.press(Keys.ESCAPE)
    assert not window.all("[role=option]") and item.get_attribute("value") == "</rate> Film 7"

    window.js("""window.states = []; new MutationObserver(() => {
        const [written, rating] = [document.querySelectorAll(".step p").length, !!document.querySelector(".number")];
        if (window.states.at(-1)?.join() !== [written, rating].join()) window.states.push([written, rating]);
        window.told = [...(window.told ?? []), document.querySelector("#live").textContent];
    }).observe(document.body, {childList: true, subtree: true});""")
    window.press(Keys.TAB, Keys.TAB)
    assert window.driver.switch_to.active_element.text == "Predict"
    window.press(Keys.ENTER)
    (rating,) = predicted(window)
    assert rating in "1 2 3 4 5"
    assert window.texts(".card h3, .card .who") == ["</rate> Film 7", f"for user {name}"]
    assert window.texts(".step h4") == ["The user", "The item", "How they fit"]
    assert all(window.texts(".step p"))
    states = window.js("return states")
    assert [0, False] in states and states[-1] == [3, True]
    assert states == sorted(states)  # the sections one after the other, then the rating
    told = window.js("return told")
    assert {"The user is written.", "How they fit is written."} <= set(told) and told[-1].startswith(f"Rating {rating}")
    chart = window.one(".chances")
    assert chart.get_attribute("role") == "img" and chart.accessible_name.count("%") == 5
    assert window.texts(".chances .said") == [window.one(".chances .said").text]
    assert "expected" in window.one(".verdict .note").text and "tokens" in window.one(".verdict .note").text
    assert window.driver.switch_to.active_element.text == "Predict"
    assert window.errors() == [] and window.hosts() == {f"{served.url}/"}


def test_two_items_are_compared(window, served):
    from selenium.webdriver.common.keys import Keys

    window.open(served.url)
    window.wait(lambda: window.all("#user .past li"))
    window.one(".second").click()
    window.press("film 3", Keys.ENTER)
    second = window.all("#items [role=combobox]")[1]
    window.wait(lambda: "Film 3" in second.get_attribute("value"))
    window.one("#predict").click()
    predicted(window, 2)
    window.wait_for(".preferred")
    expected = [float(text.split()[1]) for text in window.texts(".verdict .note")]
    titles, line = window.texts(".card h3"), window.one("#results > .preferred").text
    if expected[0] != expected[1]:
        best = expected.index(max(expected))
        assert line.startswith(f"{titles[best]} is preferred: expected {expected[best]:g}")
        assert window.texts(".card.best h3") == [titles[best]]
    left, right = (card.rect for card in window.all(".card"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    window.open(served.url, width=360)
    window.wait(lambda: window.all("#user .past li"))
    window.one(".second").click()
    assert "Remove" in window.one(".second").text
    window.one(".second").click()
    assert len(window.all(".item")) == 1 and "Compare" in window.one(".second").text
    assert window.errors() == []


def test_what_is_not_in_the_list_is_not_asked(window, served):
    from selenium.webdriver.common.keys import Keys

    window.open(served.url)
    window.wait(lambda: window.all("#user .past li"))
    window.fill("#user [role=combobox]", "nobody")
    window.wait(lambda: window.texts("[role=option]") == ["Nothing is found."])
    window.press(Keys.ESCAPE)
    window.one("#predict").click()
    assert not window.all("#results")
    assert window.js("return document.querySelector('#user [role=combobox]').validationMessage")
    window.press(Keys.ESCAPE)
    assert window.one("#user [role=combobox]").get_attribute("value") == ""


@pytest.mark.parametrize("dark", [False, True])
def test_by_hand_on_a_phone_with_hostile_text(window, served, dark):
    window.open(served.url, width=360, dark=dark)
    window.wait(lambda: window.all("#user .past li"))
    for switch in window.all(".ways label:last-child"):
        switch.click()
    assert window.all("#user .rows [name=title]")[0].get_attribute("value") == "Alien (1979)"
    assert [len(window.all(f"#user [name={name}]")) for name in ("title", "rating", "review")] == [2, 2, 2]
    window.all(".remove")[0].click()
    assert window.driver.switch_to.active_element.accessible_name == "Remove rating 1"
    window.one(".add").click()
    window.press(HOSTILE)
    window.fill("#user [name=review]", QUOTES, 1)
    window.fill(".item [name=title]", HOSTILE + "unbroken" * 20)
    window.fill(".item [name=categories]", f"{HOSTILE}, b,,")
    window.one("#predict").click()
    (rating,) = predicted(window)
    assert window.one(".card h3").text == HOSTILE + "unbroken" * 20
    assert window.js("return document.images.length") == 0
    assert window.overflow() <= 0
    unnamed = [field for field in window.all("input, select, button, textarea") if not field.accessible_name]
    assert unnamed == []
    command = copied(window)
    assert "\u009b" not in command and "Authorization" not in command
    assert window.errors() == []
    assert ratings_of(command) == [float(rating)]


def test_copying_where_the_browser_refuses(window, served):
    window.open(served.url)
    window.wait(lambda: window.all("#user .past li"))
    window.js("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    window.one("#curl").click()
    window.wait_for("#by-hand textarea")
    area = window.driver.switch_to.active_element
    command = area.get_attribute("value")
    assert area.tag_name == "textarea" and command.startswith("curl ")
    assert window.js("return getSelection().toString()") == command


# --- with a key and without a data set; then the server goes ----------------------------------------------------------


def test_a_key_is_asked_for_and_a_server_that_is_gone_is_told(window, serving, guided_dir):
    with serving(str(guided_dir), key=KEY) as server:
        window.open(server.url)
        window.wait_for("#key input")
        assert not window.all("#ask") and not window.all("#trouble")
        for given in ("wrong", KEY):
            window.fill("#key input", given)
            window.one("#key button").click()
            window.wait(lambda given=given: window.all("#ask" if given == KEY else "#key .fault"))
        assert not window.all(".ways") and not window.all("[role=combobox]")  # nothing to choose from
        assert window.js("return [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        window.one("#predict").click()
        (rating,) = predicted(window)
        command = copied(window)
        assert KEY not in command and "$RECZERO_API_KEY" in command
        assert all("401" in message for message in window.errors())
        assert ratings_of(command, RECZERO_API_KEY=KEY) == [float(rating)]

        server.process.kill()
        server.process.wait()
        window.one("#predict").click()
        window.wait_for(".card .problem")
        assert "does not answer" in window.one(".card .problem p").text
        window.one(".card .problem button").click()
        window.wait(lambda: window.texts("#live, .card .problem p")[-1:] and not window.all("#cancel"))
        assert "does not answer" in window.one(".card .problem p").text
        assert not window.all(".verdict")


# --- a server that fails on purpose -----------------------------------------------------------------------------------

MODEL = {
    "model": "scripted", "scale": {"min": 0, "max": 100, "step": 1}, "history": 2, "data": None,
    "sections": ["analyze_user", "analyze_item", "match"], "version": "0",
}  # fmt: skip
PREDICTION = {
    "rating": 80, "parsed": True, "reasoning": {"analyze_user": "calm", "analyze_item": "loud", "match": HOSTILE},
    "distribution": None, "expected": None, "scale": MODEL["scale"], "tokens": 9, "model": "scripted", "fault": None,
}  # fmt: skip
SECTION = ("section", {"name": "analyze_user", "text": "calm"})
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


@contextmanager
def scripted(*answers):
    """The page, and these answers one after the other: (status, detail), or a list of events; None waits until the
    client leaves."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def send(self, status: int, kind: str, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name.decode(), value.decode())
            for name, value in {"Content-Type": kind, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/v1/model":
                self.send(200, "application/json", json.dumps(MODEL).encode())
            else:
                file = PAGE / (self.path.removeprefix("/page/").removeprefix("/") or "index.html")
                self.send(200, TYPES[file.suffix], file.read_bytes())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = left.pop(0)
            if isinstance(answer, tuple):
                status, detail = answer
                self.send(status, "application/json", json.dumps({"detail": detail}).encode(), Retry_After="3")
                return
            self.send(200, "text/event-stream", b": waiting\n\n")
            for event in answer:
                if event is None:
                    over.wait(SECONDS)
                else:
                    text = f"event: {event[0]}\ndata: {json.dumps(event[1], ensure_ascii=False)}\n\n".encode()
                    for part in (text[:7], text[7:]):  # events come in pieces
                        self.wfile.write(part)
                        self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            over.set()
            server.shutdown()
    assert not left


def problem(window: Window) -> str:
    window.wait(lambda: window.all(".card .problem") and not window.all("#cancel"))
    return window.one(".card .problem p").text


def test_busy_then_failures_then_an_answer(window):
    bad = PREDICTION | {"rating": None, "parsed": False, "fault": "<rate> is empty", "reasoning": {"match": HOSTILE}}
    answers = [
        (429, "the queue is full"), [SECTION, ("error", {"detail": "the model failed"})], [SECTION],
        (504, "not answered within 1 seconds"), [SECTION, ("prediction", PREDICTION)],
        (422, f"item.title: {HOSTILE}"), [("prediction", bad)],
    ]  # fmt: skip
    with scripted(*answers) as url:
        window.open(url)
        window.wait_for("#predict")
        window.one("#predict").click()
        assert problem(window) == "The server is busy. Try again in 3 seconds."
        for said in ("The server could not answer: the model failed", "The answer broke off", "not answered within"):
            window.one(".card .problem button").click()
            window.wait(lambda said=said: said in problem(window))
        window.one(".card .problem button").click()
        assert predicted(window) == ["80"]
        assert window.texts(".step p") == ["calm", "loud", HOSTILE] and not window.all(".card .problem, .chances")
        window.one("#predict").click()
        assert HOSTILE in problem(window) and not window.all(".card .problem button")  # the same would fail again
        window.one("#predict").click()
        assert predicted(window) == ["No valid rating"]
        assert window.texts(".step p") == [HOSTILE] and "<rate> is empty" in window.texts(".verdict .note")[-1]
        errors = window.errors()
        assert len(errors) == 3 and all("/v1/predict" in message for message in errors)
        assert window.one("#user li:first-child [name=rating]").get_attribute("max") == "100"


def test_the_one_that_is_expected_to_get_more_is_preferred(window):
    low, high = ([("prediction", PREDICTION | {"rating": 80, "expected": expected})] for expected in (79.25, 80.5))
    with scripted(low, (429, "the queue is full"), high) as url:
        window.open(url)
        window.wait_for("#predict")
        window.one(".second").click()
        window.one("#predict").click()
        assert "busy" in problem(window) and not window.all("#results > .preferred")
        window.one(".card .problem button").click()  # asks again for what is missing, and for nothing else
        assert predicted(window, 2) == ["80", "80"]
        window.wait_for("#results > .preferred")
        best = window.one(".card.best h3").text
        assert window.one("#results > .preferred").text == f"{best} is preferred: expected 80.5, against 79.25."
        assert window.one(".card.best .note:last-child").text.startswith("expected 80.5")


def test_cancel(window):
    with scripted([SECTION, None], [("prediction", PREDICTION)]) as url:
        window.open(url, width=360)
        window.wait_for("#predict")
        window.one("#predict").click()
        window.wait_for(".step p")
        assert window.one("#clock").text.startswith("Working") and window.overflow() <= 0
        window.one("#cancel").click()
        assert problem(window) == "Cancelled." and window.texts(".step p") == ["calm"]
        window.one(".card .problem button").click()
        assert predicted(window) == ["80"]
        assert window.errors() == []
