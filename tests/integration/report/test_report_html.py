"""The page beside each wheel, looked at in a real browser: headless Chromium lays it out and tells its figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.compile.compiler_cache import CacheSummary
from scripts.report.models import report_of
from scripts.report.page import report_page
from scripts.report.timeline import Timeline, read_timeline
from tests.builds import end_event, make_report, memory, phase, report_data, write_lines

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
PROBE = """<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const cells = id => [...document.querySelectorAll('#' + id + ' tbody tr')].map(r => [...r.cells].map(c => c.innerText));
const told = {
  title: document.title, width: innerWidth, scroll: document.documentElement.scrollWidth,
  bars: [...document.querySelectorAll('#gantt rect')].map(
    e => ({...e.dataset, box: box(e), fill: getComputedStyle(e).fill, told: e.textContent})),
  gantt: document.querySelector('#gantt') && box(document.querySelector('#gantt')),
  memory: document.querySelector('#memory') && [document.querySelector('#memory').dataset.peak,
    ...box(document.querySelector('#memory path'))],
  hits: document.querySelector('#hits') && document.querySelector('#hits').innerText,
  summary: cells('summary'), stages: cells('stages'), expensive: cells('expensive'), sizes: cells('sizes'),
  parts: [...document.querySelectorAll('#expensive .bar i')].map(e => [e.className, box(e)[2]]),
  loads: performance.getEntriesByType('resource').map(e => e.name),
};
document.body.innerHTML = '';
document.body.appendChild(document.createTextNode('FIGURES' + btoa(unescape(encodeURIComponent(JSON.stringify(told))))
  + 'END'));
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


def look(browser: str, page: str, folder: Path) -> dict[str, Any]:
    """Return what the browser measured on the page."""
    import base64

    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"FIGURES(\S+?)END", done.stdout)
    assert found, done.stderr[-2000:]
    return dict(json.loads(base64.b64decode(found[1])))


def timeline(folder: Path, count: int = 25) -> Timeline:
    """Return a build of some units on two lanes, the first from the cache and the last one failed."""
    rows = [end_event("moe/hit.cu", 0, 0.5, cpu_seconds=0.1, cache="hit")]
    rows += [
        end_event(f"moe/{index}.cu", 10.0 * (index // 2) + 1, 8 + index % 2, cache="miss") for index in range(count)
    ]
    rows += [end_event("moe/<bad>.cu", 130, 5, code=1)]
    phases = [
        phase(f"moe/{i}.cu", name, 10.0 * (i // 2) + 1, 6 if i % 3 else 1) for i in range(count) for name in ("cicc",)
    ]
    phases += [phase(f"moe/{i}.cu", "cudafe++", 10.0 * (i // 2) + 7, 1.5) for i in range(count)]
    write_lines(folder / "samples.jsonl", *phases, *(memory(t, 1_000_000_000 + 10_000_000 * t) for t in range(130)))
    return read_timeline(write_lines(folder / "events.jsonl", *rows))


@pytest.fixture(scope="module")
def figures(browser: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("page")
    cache = asdict(CacheSummary("local", saved_seconds=12.5, shared={"hits": 3}))
    return look(browser, report_page(make_report(timeline(folder), compiler_cache=cache)), folder)


def test_the_page_fits_and_loads_nothing(figures: dict[str, Any]) -> None:
    assert figures["title"] == "vllm-1.whl"
    assert figures["scroll"] <= figures["width"]
    assert figures["loads"] == []


def test_bars_are_as_long_as_their_units_and_where_they_ran(figures: dict[str, Any]) -> None:
    bars = figures["bars"]
    assert len(bars) == 27
    longest = next(bar for bar in bars if bar["unit"] == "moe/1.cu")
    for bar in bars:
        x, _, width, height = bar["box"]
        assert width == pytest.approx(longest["box"][2] * float(bar["seconds"]) / 9, rel=0.03, abs=0.6)
        assert height > 10
        assert figures["gantt"][0] <= x <= figures["gantt"][0] + figures["gantt"][2]
    assert next(bar for bar in bars if bar["unit"] == "moe/2.cu")["box"][0] > longest["box"][0] + longest["box"][2]
    together = [bar["box"] for bar in bars if bar["unit"] in {"moe/0.cu", "moe/1.cu"}]
    assert together[0][0] == pytest.approx(together[1][0], abs=1)
    assert abs(together[0][1] - together[1][1]) >= together[0][3]


def test_colours_tell_phase_cache_and_failure(figures: dict[str, Any]) -> None:
    fill = {bar["unit"]: bar["fill"] for bar in figures["bars"]}
    assert len({fill["moe/1.cu"], fill["moe/0.cu"], fill["moe/hit.cu"], fill["moe/<bad>.cu"]}) == 4
    assert fill["moe/1.cu"] == fill["moe/2.cu"]


def test_the_20_most_expensive_units_are_listed_with_the_phase_that_cost(figures: dict[str, Any]) -> None:
    rows = figures["expensive"]
    assert len(rows) == 20
    cpu = [float(row[1].removesuffix(" s")) for row in rows]
    assert cpu == sorted(cpu, reverse=True)
    by_unit = {row[0]: row for row in rows}
    assert by_unit["moe/1.cu"][1:5] == ["8.1 s", "9.0 s", "1.0 GB", "cicc (80%)"]
    assert by_unit["moe/3.cu"][4] == "cudafe++ (60%)"
    assert {name for name, _ in figures["parts"]} == {"cicc", "cudafe"}
    assert all(width > 5 for _, width in figures["parts"])


def test_cache_memory_stages_and_sizes_are_told(figures: dict[str, Any]) -> None:
    assert figures["hits"] == "1 of 26 units came from the cache."
    peak, _, _, width, height = figures["memory"]
    assert int(peak) == 2_290_000_000
    assert width > 900
    assert height > 100
    assert figures["stages"] == [["fetch", "2 s", ""], ["compile", "1 min 01 s", "6.2 GB"]]
    assert figures["sizes"] == [["_moe_C", "3.6 MB", "2.0 MB", "2"], ["cumem_allocator", "27.1 kB", "", "0"]]
    assert ["note", "not <for> serving"] in figures["summary"]
    assert figures["summary"][0] == ["size", "8.1 MB (8,123,456 bytes)"]


def test_a_slim_wheels_page_has_no_timeline_and_says_what_it_was_cut_from(browser: str, tmp_path: Path) -> None:
    data = report_data(slimmed_from={"name": "fat.whl", "sha256": "ab" * 32, "size": 9})
    for key in ("components", "timeline", "stages"):
        del data[key]
    told = look(browser, report_page(report_of(json.dumps(data), "x")), tmp_path)
    assert told["gantt"] is None
    assert ["cut out of", "fat.whl"] in told["summary"]


def test_a_build_that_compiled_nothing_has_a_page(browser: str, tmp_path: Path) -> None:
    told = look(browser, report_page(make_report(Timeline())), tmp_path)
    assert told["bars"] == []
    assert told["memory"] is None
    assert told["hits"] == "0 of 0 units came from the cache."


def test_phases_too_short_to_have_used_cpu_are_no_division_by_zero(tmp_path: Path) -> None:
    events = write_lines(
        tmp_path / "events.jsonl", end_event("moe/short.cu", 0, 0.4), end_event("moe/h.cu", 1, 0.1, cache="hit")
    )
    write_lines(tmp_path / "samples.jsonl", {**phase("moe/short.cu", "host compiler", 0.1, 0), "cpu": 0.0})
    page = report_page(make_report(read_timeline(events)))
    assert "<td>not seen</td>" in page
    assert "<td>cache</td>" in page
