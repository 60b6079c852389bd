"""A headless Chromium, driven by chromedriver through the WebDriver protocol: JSON over HTTP."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update --hide-scrollbars"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Right": "\ue014", "Left": "\ue012", "Home": "\ue011", "End": "\ue010", "Tab": "\ue004"}


def why_not():
    """What is missing here, in words; empty where there is all."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    return "pages are tried in Chromium: install chromium and chromium-driver"


class Browser:
    """One window. Every method waits until what it asks for has been done."""

    def __init__(self, address, profile):
        self.address = address
        options = {"binary": shutil.which("chromium"), "args": FLAGS.split()}
        options["args"] += ["--user-data-dir=%s" % profile]
        wanted = {"goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        body = {"capabilities": {"alwaysMatch": wanted}}
        self.path = "/session/" + self.ask("POST", "/session", body)["sessionId"]
        self.post("/url", url="about:blank")  # in place of the browser's own page, which asks
        self.requests()

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.loads(error.read())["value"]["message"]) from None

    def post(self, path, **body):
        return self.ask("POST", self.path + path, body)

    def open(self, page):
        self.post("/url", url=page.as_uri())

    def run(self, script, *arguments):
        """What the JavaScript `script` returns."""
        return self.post("/execute/sync", script=script, args=list(arguments))

    def element(self, selector):
        found = self.post("/element", using="css selector", value=selector)
        return "/element/" + found[_ELEMENT]

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.post(self.element(selector) + "/click")

    def click_at(self, selector, x, y):
        """Clicks x, y pixels from the top left corner of an element, as a finger would."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        script = "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        left, top = self.run(script + "return [b.left, b.top]", selector)
        move = {"type": "pointerMove", "x": round(left + x), "y": round(top + y), "duration": 0}
        press = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self.post("/actions", actions=[{"type": "pointer", "id": "m", "actions": [move, *press]}])

    def press(self, *keys):
        """Presses keys one after the other, wherever the focus is."""
        kinds = ("keyDown", "keyUp")
        pressed = [{"type": t, "value": KEYS.get(key, key)} for key in keys for t in kinds]
        self.post("/actions", actions=[{"type": "key", "id": "k", "actions": pressed}])

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def devtools(self, command, **parameters):
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def look_like(self, width, height=900, scheme="light"):
        """A window of that many pixels, on a person's screen that is light or dark."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
        self.post("/execute/async", script=frames, args=[])  # until it has been drawn anew

    def complaints(self):
        """What the console has been told since the last time, errors and warnings."""
        said = self.post("/se/log", type="browser")
        return [line["message"] for line in said if line["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        """The addresses that were asked for since the last time."""
        found = []
        for entry in self.post("/se/log", type="performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found


@contextlib.contextmanager
def browser(folder):
    """A Browser with a new profile in `folder`; it and its driver end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", "--port=%d" % port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address, one = "http://127.0.0.1:%d" % port, None
    try:
        _wait(address)
        one = Browser(address, folder / "profile")
        yield one
    finally:
        if one is not None:
            one.ask("DELETE", one.path)
        driver.terminate()
        driver.wait(20)


def _wait(address):
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(address + "/status") as answer:
            if json.loads(answer.read())["value"]["ready"]:
                return
        time.sleep(0.05)
    raise AssertionError("chromedriver is not ready after half a minute")
