"""The landing page: its data, and (large) what a real browser shows for a GPU and a driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from scripts.drivers import release
from scripts.index_entry import Entry, Served
from scripts.landing import landing_page
from tests.integration.index_servers import serve

SHOT = os.environ.get("WHEELSMITH_TEST_SCREENSHOT", "")


def entry(version: str, served: dict[str, tuple[int, int, int, str]] | None, notice: str = "") -> Entry:
    rows = {
        arch: Served(arch=arch, native=native, compatible=compatible, jit=jit, cuda=cuda, driver=release(cuda).driver)
        for arch, (native, compatible, jit, cuda) in (served or {}).items()
    }
    return Entry(
        filename=f"vllm-{version}-cp38-abi3-manylinux_2_31_x86_64.whl",
        name="vllm",
        version=version,
        sha256="a" * 64,
        size=312_000_000,
        metadata_sha256="b" * 64,
        requires_python="<3.14,>=3.10",
        uploaded="2026-11-23T22:00:00.000000Z",
        torch="==2.9.1",
        notice=notice,
        extras=(".report.html", ".report.json"),
        serves=None if served is None else tuple(rows.values()),
    )


ENTRIES = [
    entry("0.15.1+cu126", {"8.0": (90, 0, 0, "12.0"), "9.0": (90, 0, 0, "12.0")}),
    entry("0.15.1+cu128.sm120", {"12.0": (120, 0, 0, "12.8"), "12.1": (0, 120, 0, "12.9")}),
    entry("0.15.1+cu128.sm90", {"9.0": (140, 0, 0, "12.0")}),
    entry("0.20.1+cu130.quickstart", {"9.0": (11, 0, 0, "13.0"), "12.0": (8, 0, 0, "13.0")}, "proves a set-up"),
    entry("0.20.1+cu130.sm90", {"9.0": (150, 0, 0, "13.0")}),
    entry("0.9.0+cu118", None),
]


def test_the_data_in_the_page_cannot_end_its_script_and_is_complete() -> None:
    page = landing_page([*ENTRIES, entry("1.0+x", None, "</script><script>alert(1)")]).decode()
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data = json.loads(match[1])
    assert len(data["wheels"]) == 7
    assert data["wheels"][1]["index"] == "vllm/0.15.1/cu128-sm120/"
    assert data["wheels"][6]["notice"] == "</script><script>alert(1)"
    assert {"name": "RTX 5090", "arch": "12.0"} in data["gpus"]
    assert data["drivers"][-1]["cuda"] == "11.8"
    assert page.count("<tr>") == 8
    assert "not audited" in page


def test_a_wheel_without_a_label_points_at_the_index_of_its_version() -> None:
    page = landing_page([entry("0.15.1", {})]).decode()
    assert '"index": "vllm/0.15.1/"' in page
    assert "no GPU code" in page


def browser(tmp_path: Path, url: str, *options: str) -> str:
    chromium = shutil.which("chromium")
    assert chromium, "apt-get install chromium"
    command = [chromium, "--headless", "--no-sandbox", "--disable-background-networking", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", *options, url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.large
@pytest.mark.parametrize(
    ("gpu", "driver", "shown"),
    [
        ("RTX 5090", "12.8", "vllm-0.15.1+cu128.sm120-"),
        ("RTX 5090", "12.6", "need a CUDA 12.8 driver"),
        ("H100", "13.0", "vllm-0.20.1+cu130.sm90-"),
        ("H100", "12.4", "vllm-0.15.1+cu126-"),
        ("T4", "13.0", "No wheel here has code for the T4"),
    ],
)
def test_picking_a_gpu_and_a_driver_shows_the_right_wheel(tmp_path: Path, gpu: str, driver: str, shown: str) -> None:
    (tmp_path / "site").mkdir()
    # A person's picking: the choices are set and the change events sent, by a script after the page's own.
    picks = "".join(
        f"document.getElementById('{name}').value='{value}';"
        f"document.getElementById('{name}').dispatchEvent(new Event('change'));"
        for name, value in (("gpu", gpu), ("driver", driver))
    )
    page = landing_page(ENTRIES).decode()
    (tmp_path / "site" / "index.html").write_text(page.replace("</body>", f"<script>{picks}</script></body>"))
    (tmp_path / "site" / "link.html").write_text(page)
    with serve(tmp_path / "site") as server:
        dom = browser(tmp_path, f"{server.url}/", "--dump-dom")
        link = f"{server.url}/link.html#gpu={quote(gpu)}&driver={driver}"
        linked = browser(tmp_path, link, "--dump-dom")
        for text in (dom, linked):
            match = re.search(r'<div id="result"[^>]*>(.*?)</div>', text, re.DOTALL)
            assert match
            assert shown in match[1]
            if shown.startswith("vllm"):
                pin = "vllm==" + shown.removeprefix("vllm-").rstrip("-")
                variant = shown.removeprefix("vllm-").rstrip("-").replace("+", "/").replace(".sm", "-sm")
                assert f'pip install "{pin}" --extra-index-url {server.url}/vllm/{variant}/' in match[1]
                assert f'uv add "{pin}" --index wheelsmith={server.url}/vllm/{variant}/' in match[1]
        if SHOT and gpu == "RTX 5090" and driver == "12.8":
            browser(tmp_path, link, f"--screenshot={SHOT}", "--window-size=1000,1100", "--hide-scrollbars")
