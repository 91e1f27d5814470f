"""The landing page: its data, and (large) what a real browser shows for a GPU and a driver."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from scripts.commands import publish
from scripts.core.console import Console
from scripts.core.paths import ROOT
from scripts.cuda.archs import TABLE
from scripts.cuda.drivers import RELEASES, release
from scripts.index.entry import Entry, Served, read_entry
from scripts.index.landing import landing_page
from scripts.index.static import StaticIndex
from scripts.index.store import Directory
from tests.integration.browser import Browser, browser
from tests.integration.index_servers import clean_environment, serve, tool, venv
from tests.wheels import make_wheel

SHOT = os.environ.get("WHEELSMITH_TEST_SCREENSHOT", "")


def entry(
    version: str,
    served: dict[str, tuple[int, int, int, str]] | None,
    notice: str = "",
    machine: str = "x86_64",
) -> Entry:
    rows = {
        arch: Served(arch=arch, native=native, compatible=compatible, jit=jit, cuda=cuda, driver=release(cuda).driver)
        for arch, (native, compatible, jit, cuda) in (served or {}).items()
    }
    return Entry(
        filename=f"vllm-{version}-cp38-abi3-manylinux_2_31_{machine}.whl",
        name="vllm",
        version=version,
        sha256=hashlib.sha256(version.encode()).hexdigest(),
        size=312_000_000,
        metadata_sha256="b" * 64,
        requires_python="<3.14,>=3.10",
        uploaded="2026-11-23T22:00:00.000000Z",
        torch="==2.9.1",
        notice=notice,
        extras={".report.html": "", ".report.json": ""},
        serves=None if served is None else tuple(rows.values()),
    )


ENTRIES = [
    entry("0.15.1+cu126", {"8.0": (90, 0, 0, "12.0"), "9.0": (90, 0, 0, "12.0")}),
    entry("0.15.1+cu128.sm120", {"12.0": (120, 0, 0, "12.8"), "12.1": (0, 120, 0, "12.9")}),
    entry("0.15.1+cu128.sm90", {"9.0": (140, 0, 0, "12.0")}),
    entry("0.20.1+cu130.quickstart", {"9.0": (11, 0, 0, "13.0"), "12.0": (8, 0, 0, "13.0")}, "proves a set-up"),
    entry("0.20.1+cu130.sm90", {"9.0": (150, 0, 0, "13.0")}),
    entry("0.8.0+cu126.sm89", {"8.9": (1, 0, 2, "12.6")}),
    entry("0.9.0+cu118", None),
]


def test_the_data_in_the_page_cannot_end_its_script_and_is_complete() -> None:
    page = landing_page([*ENTRIES, entry("1.0+x", None, "</script><script>alert(1)")]).decode()
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data = json.loads(match[1])
    assert len(data["wheels"]) == 8
    assert data["wheels"][1]["index"] == "vllm/0.15.1/cu128-sm120/"
    assert data["wheels"][7]["notice"] == "</script><script>alert(1)"
    assert {"name": "RTX 5090", "arch": "12.0"} in data["gpus"]
    assert data["drivers"][-1]["cuda"] == "11.8"
    assert page.count("<tr ") == 8
    assert "not audited" in page
    assert data["machines"] == ["x86_64"]


def test_a_wheel_without_a_label_points_at_an_index_that_no_other_wheel_shares() -> None:
    page = landing_page([entry("0.15.1", {})]).decode()
    assert '"index": "vllm/0.15.1/_public/"' in page
    assert "no GPU code" in page


HOSTILE = "<script>window.taken=1</script><img src=x onerror=window.taken=1>\"'"
TEXTS = ("filename", "name", "torch", "requires_python", "notice", "yanked", "uploaded", "sha256")


def hostile_entry() -> Entry:
    """Return an entry whose texts are HTML, as if no check had stopped it (a version would be refused before)."""
    extras = {f".{HOSTILE}": "a" * 64}
    served = Served.model_construct(arch=HOSTILE, native=1, compatible=0, jit=0, cuda="13.0", driver=HOSTILE)
    texts = dict.fromkeys(TEXTS, HOSTILE)
    return entry("1.0+x", {}).model_copy(update={**texts, "extras": extras, "serves": (served,)})


def test_hostile_texts_are_shown_as_text_wherever_they_stand(tab: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(landing_page([hostile_entry()]))
    with serve(tmp_path) as server:
        tab.open(f"{server.url}/")
        assert tab.run("document.querySelectorAll('script').length") == 2  # the data and the page's own
        assert tab.run("document.querySelectorAll('img').length") == 0
        tab.run(f"gpu.append(element('option', 'x', {{value: {json.dumps(HOSTILE)}}}))")
        tab.choose("#gpu", HOSTILE)
        tab.choose("#driver", "13.0")
        assert HOSTILE in str(tab.run("document.getElementById('result').textContent"))
        row = str(tab.run("document.querySelector('tbody tr').textContent"))
        assert row.count(HOSTILE[:16]) == len({*TEXTS} - {"name", "requires_python", "notice"}) + 2  # archs, extras
        assert tab.run("document.querySelectorAll('img, tbody script, #result script').length") == 0
        assert tab.run("window.taken") is None


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_bytes(landing_page(ENTRIES))
    return tmp_path / "site"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser"), "wheels.test") as found:
        yield found


def lines(tab: Browser) -> list[str]:
    """Return what the page offers to copy."""
    found = tab.run("[...document.querySelectorAll('#result pre code')].map(item => item.textContent)")
    return [str(text) for text in found]


@pytest.mark.parametrize(
    ("gpu", "driver", "shown"),
    [
        ("RTX 5090", "12.8", "vllm-0.15.1+cu128.sm120-"),
        ("12.1", "12.9", "vllm-0.15.1+cu128.sm120-"),
        ("RTX 5090", "12.6", "need a CUDA 12.8 driver"),
        ("H100", "13.0", "vllm-0.20.1+cu130.sm90-"),
        ("H100", "13.0", "150 kernel containers for exactly this GPU. Needs a CUDA 13.0 driver"),
        ("L40S", "12.6", "1 kernel container for exactly this GPU; 2 kernel containers are compiled by the driver"),
        ("9.0", "12.4", "vllm-0.15.1+cu126-"),
        ("T4", "13.0", "No wheel here is known to have code for the T4 (7.5). 1 of the wheels here was not audited"),
    ],
)
def test_picking_a_gpu_or_a_capability_and_a_driver_shows_the_right_wheel(
    site: Path, tab: Browser, gpu: str, driver: str, shown: str
) -> None:
    with serve(site) as server:
        tab.open(f"{server.url}/")
        tab.choose("#gpu", gpu)
        tab.choose("#driver", driver)
        assert shown in tab.run("document.getElementById('result').textContent")
        tab.open(f"{server.url}/?again#gpu={quote(gpu)}&driver={driver}")
        assert shown in tab.run("document.getElementById('result').textContent")
        if SHOT and gpu == "RTX 5090" and driver == "12.8":
            tab.width(1000, 1250)
            tab.shot(Path(SHOT))
            Path(SHOT).write_bytes(stamped(Path(SHOT).read_bytes()))


def stamped(png: bytes) -> bytes:
    """Return a picture that says which template it shows."""
    text = b"tEXttemplate\0" + template_digest()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return png[:33] + chunk + png[33:]  # behind the header


def template_digest() -> bytes:
    return hashlib.sha256((ROOT / "scripts/index/landing.html").read_bytes()).hexdigest().encode()


def test_the_picture_in_the_docs_shows_the_page_as_it_is() -> None:
    """Renew it: WHEELSMITH_TEST_SCREENSHOT=docs/images/landing.png pytest tests/integration/index/test_landing.py."""
    assert template_digest() in (ROOT / "docs/images/landing.png").read_bytes()[:400]


def test_an_index_with_wheels_for_several_processors_asks_for_which(tab: Browser, tmp_path: Path) -> None:
    served = {"9.0": (90, 0, 0, "12.0")}
    both = [entry("0.15.1", served), entry("0.15.1", served, machine="aarch64")]
    small = both[1].model_copy(update={"size": 1})  # the smaller one is preferred among those that run
    hidden = "document.getElementById('machines').hidden"
    with serve(tmp_path) as server:
        (tmp_path / "index.html").write_bytes(landing_page([both[0]]))
        tab.open(f"{server.url}/#gpu=H100&driver=12.4")
        assert tab.run(hidden) is True
        (tmp_path / "index.html").write_bytes(landing_page([both[0], small]))
        tab.open(f"{server.url}/?both#gpu=H100&driver=12.4")
        assert tab.run(hidden) is False
        assert str(tab.run("document.getElementById('wheel').textContent")).endswith("_x86_64.whl")
        tab.choose("#machine", "aarch64")
        assert str(tab.run("document.getElementById('wheel').textContent")).endswith("_aarch64.whl")
        assert "machine=aarch64" in str(tab.run("location.hash"))
        tab.click("#only")
        assert tab.run("[...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight).length") == 1
        (tmp_path / "index.html").write_bytes(landing_page([both[0], entry("0.14.0", {}, machine="aarch64")]))
        tab.open(f"{server.url}/?none#gpu=H100&driver=12.4&machine=aarch64")
        shown = str(tab.run("document.getElementById('result').textContent"))
        assert "No wheel here is known to have code for the H100 (9.0), on aarch64." in shown


def test_what_is_to_be_copied_has_the_width_of_the_screen_and_the_table_its_names(site: Path, tab: Browser) -> None:
    measured = "(e => [e.clientWidth, parseFloat(getComputedStyle(e).fontSize)])(document.querySelector('.copy pre'))"
    with serve(site) as server:
        tab.open(f"{server.url}/?wide#gpu=H100&driver=12.4")
        tab.width(390)
        width, letters = tab.run(measured)
        assert width > 300
        assert letters >= 13
        assert tab.run("document.querySelector('.copy button').offsetHeight") >= 30  # a thumb can hit it
        tab.width(1280)
        assert tab.run("document.querySelector('tbody td').offsetWidth") > 280
        lines_of = "[...document.querySelectorAll('td.whole')].map(e => e.getClientRects().length)"
        assert set(tab.run(lines_of)) == {1}
        tab.call("Emulation.clearDeviceMetricsOverride")


def test_search_filter_and_a_narrow_screen(site: Path, tab: Browser) -> None:
    tab.call("Emulation.clearDeviceMetricsOverride")
    with serve(site) as server:
        tab.open(f"{server.url}/#gpu=H100&driver=12.4")
        visible = "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight).length"
        assert tab.run(visible) == len(ENTRIES)
        tab.type("#search", "cu130 9.0")
        assert tab.run(visible) == 2
        assert tab.run("document.getElementById('count').textContent") == "2 of 7 wheels"
        tab.run("search.value = ''; search.oninput()")
        tab.click("#only")
        assert tab.run(visible) == 2  # +cu126 and +cu128.sm90
        table = str(tab.run("document.querySelector('table').textContent"))
        assert "not audited" in table
        assert "2026-11-23 22:00" in table
        assert "312.0 MB" in table
        for width in (390, 320):
            tab.width(width)
            assert tab.run("document.documentElement.scrollWidth") <= width
            cut = "[...document.querySelectorAll('td, pre, select, h2')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            assert tab.run(f"{cut}.length") == 0
        if SHOT:
            tab.width(390)
            tab.run("scrollTo(0, 0)")
            tab.shot(Path(SHOT).with_suffix(".narrow.png"))


@pytest.mark.parametrize("host", ["127.0.0.1", "wheels.test"])
def test_the_copy_button_copies_on_plain_http_too(site: Path, tab: Browser, host: str) -> None:
    with serve(site) as server:
        tab.open(f"http://{host}:{urlsplit(server.url).port}/#gpu=H100&driver=12.4")
        assert tab.run("isSecureContext") is (host == "127.0.0.1")
        if host == "127.0.0.1":
            tab.call("Browser.grantPermissions", permissions=["clipboardSanitizedWrite"])
        for number, text in enumerate(lines(tab)):
            tab.click("#result .copy button", number)
            tab.wait(f"document.querySelectorAll('#result .copy button')[{number}].textContent === 'copied'")
            assert tab.clipboard() == text


def a_wheel(folder: Path, version: str) -> Path:
    """Write a wheel that says which it is when it is imported."""
    folder.mkdir(exist_ok=True)
    metadata = "Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nText.\n"
    code = f"which = {version!r}\n".encode()
    return make_wheel(folder, {"vllm/__init__.py": code}, version=version, metadata=metadata, tags="py3-none-any")


# The official wheel beside slimmed and rebuilt ones of the same version: an installer asked for 0.15.1 takes a label.
SERVED = {
    "0.15.1": {row.number: (50, 0, 0, "12.9") for row in TABLE if row.number not in {"7.0", "7.2"}},
    "0.15.1+cu129.sm86": {"8.6": (50, 0, 0, "12.0"), "8.9": (0, 50, 0, "12.0")},
    "0.15.1+cu128.sm120": {"12.0": (50, 0, 0, "12.8")},
    "0.15.1+cu128": {"8.0": (50, 0, 0, "12.0"), "9.0": (50, 0, 0, "12.0"), "10.0": (50, 0, 0, "12.8")},
    "0.14.0+cu130.sm75": {"7.5": (50, 0, 0, "13.0")},
}


@pytest.mark.servers
@pytest.mark.large
def test_what_the_button_copies_installs_exactly_the_wheel_that_is_named_for_every_gpu(
    tmp_path: Path, tab: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELSMITH_CACHE", str(tmp_path / "cache"))
    index = tmp_path / "index"
    wheels = [str(a_wheel(tmp_path / "w", version)) for version in SERVED]
    publish.main([*wheels, "--to", str(index), "--no-audit"], Console(quiet=True))
    for path in (index / "entries").iterdir():  # what the audit of such wheels would find
        found = read_entry(path.read_bytes(), f"entries/{path.name}")
        served = entry("1", SERVED[found.version]).serves
        path.write_bytes(found.model_copy(update={"serves": served}).json())
    StaticIndex(Directory(index), Console(quiet=True)).refresh()
    gpus = [name for row in TABLE for name in (*row.gpus, row.number)]
    copied: dict[str, str] = {}
    named: dict[str, str] = {}
    with serve(index) as server:
        tab.open(f"{server.url}/")
        for gpu in gpus:
            for driver in (RELEASES[-1].cuda, "11.8", "12.8"):
                tab.choose("#gpu", gpu)
                tab.choose("#driver", driver)
                if not tab.run("!!document.getElementById('wheel')"):
                    continue
                file = str(tab.run("document.getElementById('wheel').textContent"))
                named[gpu] = file
                for number, text in enumerate(lines(tab)):
                    if text not in copied:
                        tab.click("#result .copy button", number)
                        tab.wait(f"document.querySelectorAll('#result .copy button')[{number}].textContent !== 'copy'")
                        assert tab.clipboard() == text
                        copied[text] = file
        assert "H100" in named
        assert len(set(named.values())) >= 4
        for number, (text, file) in enumerate(copied.items()):
            python = venv(tmp_path / f"venv{number}")
            install(text, python, tmp_path / f"project{number}", tmp_path)
            which = [str(python), "-c", "import vllm; print(vllm.which)"]
            done = subprocess.run(which, capture_output=True, text=True, check=True, cwd=tmp_path)
            assert done.stdout.strip() == file.split("-")[1], text
    sys.stderr.write(
        f"\n{len(named)} of {len(gpus)} GPUs and capabilities have a wheel; {len(copied)} lines installed\n"
    )


def install(text: str, python: Path, project: Path, home: Path) -> None:
    """Run what was copied, as a shell, a requirements file or a pyproject.toml has it."""
    project.mkdir()
    environment = {**clean_environment(home), "VIRTUAL_ENV": str(python.parent.parent)}
    environment.pop("UV_NO_CONFIG")
    environment["PATH"] = f"{Path(tool('uv')).parent}:{environment['PATH']}"
    head = '[project]\nname = "p"\nversion = "0"\nrequires-python = ">=3.10"\n'
    pip = f"{sys.executable} -m pip --python {python}"
    sync = ["uv sync --active --no-install-project --inexact"]
    if text.startswith("pip "):
        commands = [text.replace("pip install", f"{pip} install --no-deps")]
    elif text.startswith("uv pip"):
        commands = [text.replace("install", "install --no-deps")]
    elif text.startswith("uv add"):
        (project / "pyproject.toml").write_text(head + "dependencies = []\n")
        commands = [text.replace("uv add", "uv add --active --no-sync"), *sync]
    elif text.startswith("[project]"):
        (project / "pyproject.toml").write_text(text.replace("[project]\n", head))
        commands = sync
    else:
        (project / "requirements.txt").write_text(text + "\n")
        commands = [f"{pip} install --no-deps --require-hashes -r requirements.txt"]
        commands += ["uv pip install --no-deps --require-hashes --reinstall -r requirements.txt"]
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    shutil.rmtree(project)
