"""Debian's headless Chromium, driven over its pipe: pages are opened, clicked and typed into as people do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """One tab. Methods fail when the browser says no."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer, self._number, self._rest = reader, writer, 0, b""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._reader, 1 << 16)
            assert data, "the browser has gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str) -> None:
        """Open a page and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def click(self, selector: str, number: int = 0) -> None:
        """Click in the middle of an element, with the mouse."""
        box = self.run(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{number}];"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, as the list itself reports it."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('change')); })()"
        )

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def clipboard(self) -> str:
        """Return what Ctrl-V gives."""
        self.run(
            "(() => { const a = document.createElement('textarea'); a.id = 'pasted'; document.body.append(a);"
            " a.focus(); })()"
        )
        keys = {"modifiers": 2, "key": "v", "code": "KeyV", "windowsVirtualKeyCode": 86}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", commands=["paste"], **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)
        text = self.run("document.getElementById('pasted').value")
        self.run("document.getElementById('pasted').remove()")
        return str(text)

    def width(self, pixels: int, height: int = 844) -> None:
        """Look at the page as a screen of so many pixels does."""
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=True)

    def shot(self, path: Path) -> None:
        """Save a picture."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(work: Path, *hosts: str) -> Iterator[Browser]:
    """Run a browser for which all `hosts` are this machine; skip where Chromium is not installed."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [chromium, "--headless", "--no-sandbox", "--disable-background-networking", "--disable-gpu"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={work / 'profile'}", "about:blank"]
    if hosts:
        command += ["--host-resolver-rules=" + ",".join(f"MAP {host} 127.0.0.1" for host in hosts)]

    # The protocol's pipes are file descriptors 3 and 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", *command]
    with (work / "browser.log").open("wb") as log:
        child = subprocess.Popen(shell, stdout=log, stderr=log, pass_fds=(theirs_in, theirs_out))
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_in, ours_out)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        child.terminate()
        child.wait()
