"""A headless Chromium, driven over a pipe by its DevTools protocol: nothing but the browser itself is needed.

    with Browser(find()) as browser:
        page = browser.open(Path("clip.html"))
        page.click("#play")
        assert page.value("document.title") == "..."

What the page writes to its console, and every address that it asks for, is kept. As a script it takes a picture:

    python -m tests.browser clip.html docs/anatomy.png
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds for one answer, on a busy machine
KEYS = {
    **{key: code for code, key in enumerate(("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"), start=37)},
    "Tab": 9,
    "Enter": 13,
    " ": 32,
    "PageUp": 33,
    "PageDown": 34,
    "End": 35,
    "Home": 36,
}


def find() -> str | None:
    """The program of a Chromium or a Chrome; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """The process, and one page."""

    def __init__(self, program: str):
        self.program = program

    def __enter__(self) -> "Browser":
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        ]
        flags += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"]
        flags += [f"--user-data-dir={self.folder.name}", "about:blank"]
        # The browser reads commands from 3, and writes answers to 4.
        shell = f'exec "$@" 3<&{reads} 4>&{writes}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", self.program, *flags], pass_fds=(reads, writes), stderr=subprocess.DEVNULL
        )
        os.close(reads)
        os.close(writes)
        self._rest, self._count, self._session = b"", 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._read)
        os.close(self._write)
        self.folder.cleanup()

    def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result. Raises RuntimeError for its error, and where no answer comes."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise RuntimeError(f"{method}: no answer in {PATIENCE} s")
            if not (part := os.read(self._read, 1 << 20)):
                raise RuntimeError(f"{method}: the browser has ended")
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(first)
        told = answer.get("params", {})
        if answer.get("method") == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif answer.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif answer.get("method") == "Log.entryAdded":
            self.console.append(told["entry"]["text"])
        elif answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return answer

    def open(self, file: Path, width: int = 1280, height: int = 1000, dark: bool = False) -> "Browser":
        """A new page of a file, when it has been loaded."""
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.until("document.readyState === 'complete'")
        return self

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['exception']['description']}")
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Ask until an expression is true; RuntimeError where it does not become so."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            if time.monotonic() > end:
                raise RuntimeError(f"{expression} is not true after {PATIENCE} s")

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).textContent"))

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.value(f"(b => [b.x, b.y, b.width, b.height])({element}.getBoundingClientRect())")
        return x, y, width, height

    def mouse(self, x: float, y: float, click: bool = False) -> None:
        """Move the mouse, and click."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y, width, height = self.place(selector)
        self.mouse(x + width / 2, y + height / 2, click=True)

    def press(self, key: str) -> None:
        """Press a key, and let it go."""
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        named = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **named, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self) -> bytes:
        """What is seen of the page, a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])


def main(page: str, target: str, dark: str = "") -> None:
    """A picture of a page with a code pointed at, of few colours so that it is small."""
    from PIL import Image

    program = find()
    if program is None:
        raise SystemExit("no Chromium is installed")
    with Browser(program) as browser:
        browser.open(Path(page), width=1280, height=1250, dark=bool(dark))
        left, top, _, _ = browser.place("#codes")
        browser.mouse(left + 600, top + 40)
        browser.value("document.querySelector('#position').value = 3")
        browser.value("document.querySelector('#position').dispatchEvent(new Event('input')); scrollTo(0, 0)")
        image = Image.open(io.BytesIO(browser.picture()))
    image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
