"""A tiny driver of headless Chromium over its DevTools protocol, with the standard library alone."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0"),
)
KEYS = {
    "Enter": ("\r", 13), "Escape": ("", 27), "ArrowLeft": ("", 37), "ArrowUp": ("", 38), "ArrowRight": ("", 39),
    "ArrowDown": ("", 40), "Home": ("", 36), "End": ("", 35), "Tab": ("", 9),
}  # fmt: skip


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class WebSocket:
    """A client for text messages (RFC 6455)."""

    def __init__(self, host: str, port: int, resource: str, timeout_s: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._reader = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {resource} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        status = self._reader.readline()
        if b" 101 " not in status:
            raise ConnectionError(status)
        while self._reader.readline() != b"\r\n":
            pass

    def send(self, text: str) -> None:
        payload = text.encode()
        size = len(payload)
        head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
        if size > 0xFFFF:
            head = struct.pack("!BBQ", 0x81, 0xFF, size)
        self._socket.sendall(head + bytes(4) + payload)  # a mask of zeros changes nothing

    def receive(self) -> str:
        message = b""
        while True:
            first, second = self._read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self._read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._read(8))
            payload = self._read(size)
            if first & 0x0F <= 1:  # a text frame or its continuation; pings are not needed here
                message += payload
                if first & 0x80:
                    return message.decode()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _read(self, n_bytes: int) -> bytes:
        content = self._reader.read(n_bytes)
        if len(content) < n_bytes:
            raise ConnectionError("the browser closed the connection")
        return content


class Browser:
    """One headless Chromium with one tab. ``events`` holds what happened since the page was opened."""

    def __init__(self, executable: str, timeout_s: float = 60) -> None:
        self.events: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        command = [executable, *ARGUMENTS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port(time.monotonic() + timeout_s)
        self._socket = WebSocket("127.0.0.1", port, self._page_resource(port), timeout_s)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events on the way are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.receive())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def open(self, page: Path, width: int = 1400, height: int = 900, scheme: str = "light") -> None:
        """Load a file and wait until it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")
        self.evaluate("1")
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 20) -> None:
        """Wait until a JavaScript expression holds."""
        end = time.monotonic() + timeout_s
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text, code = KEYS.get(key, (key, 0 if key == "/" else ord(key.upper()[0])))
        down = {"type": "keyDown", "key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        self.call("Input.dispatchKeyEvent", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, full: bool = True) -> None:
        """Write what is seen, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
            answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def problems(self) -> list[str]:
        """Return console messages, exceptions, log entries and dialogs since the page was opened."""
        wanted = (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return [json.dumps(event)[:500] for event in self.events if event["method"] in wanted]

    def requested(self) -> list[str]:
        """Return every address asked for since the page was opened, data addresses left out."""
        events = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in (event["request"]["url"] for event in events) if not url.startswith("data:")]

    def _note(self, message: dict[str, Any]) -> None:
        self.events.append(message)
        if message.get("method") == "Page.javascriptDialogOpening":  # it would block everything else
            number = next(self._numbers)
            command = {"id": number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(command))

    def _port(self, end: float) -> int:
        note = self._profile / "DevToolsActivePort"
        while not (note.exists() and "\n" in note.read_text()):
            if time.monotonic() > end or self._process.poll() is not None:
                self._process.kill()
                raise TimeoutError(f"Chromium did not start (exit status {self._process.wait()})")
            time.sleep(0.05)
        return int(note.read_text().split()[0])

    def _page_resource(self, port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", "/json/list")
            targets = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        return "/" + address.split("/", 3)[3]
