"""The HTML reports: whatever a name holds, it is shown as text; templates use only what stands below them."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from scripts.audit.models import AuditReport
from scripts.audit.show import html
from scripts.core.html import environment, render
from scripts.core.paths import ROOT
from scripts.report.models import report_of
from scripts.report.page import report_page
from scripts.report.timeline import read_timeline
from tests.builds import audit_data, end_event, memory, phase, report_data, write_lines

HOSTILE = "<script>window.taken=1</script><img src=x onerror=alert(1)>\"'&lt;"
MADE_OF = {"sha256", "commit", "kind", "level", "cache"}  # digests and words of closed sets: refused before
TEMPLATES = sorted(path for path in (ROOT / "scripts").rglob("*.html"))
LAYERS = ["index", "report", "audit", "core"]


class Tags(HTMLParser):
    """Counts a page's elements and gathers its text and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.values: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile(value: Any, key: str = "") -> Any:
    """Return the data with HTML in place of every text, and of the names of files and archs."""
    if isinstance(value, dict):
        named = key in {"stages", "components", "elf", "ptx", "ptx_versions", "compression", "bytes_per_arch"}
        return {HOSTILE if named else name: hostile(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, key if isinstance(item, str) else "") for item in value]
    return HOSTILE if isinstance(value, str) and key not in MADE_OF else value


def audit() -> dict[str, Any]:
    kernels = {"native": 1, "compatible": 0, "jit": 1, "missing": 0, "uncounted_containers": 0}
    unit = {"unit": "a.cu", "arch": "compute_80", "ptx": "8.8", "cuda": "12.9", "kernels": 0}
    sight = {
        "native": 1, "compatible": 0, "jit": 1, "missing": 0, "kernels": kernels, "elf": {"80": 1}, "ptx": {"80": 1},
        "jit_units": [unit],
    }  # fmt: skip
    target = {
        "gpu": "H100", "arch": "sm_90", "driver": "12.8", "driver_cuda": "12.8", "ok": False, "native": 1,
        "compatible": 0, "jit": 1, "missing": 0, "kernels": kernels, "lowest_cuda": "12.0", "lowest_driver": "525",
        "lowest_driver_without_jit": None, "reasons": ["a"], "warnings": ["a"], "summary": "a",
        "components": {"vllm/_C.so": sight},
    }  # fmt: skip
    host = {
        "machine": "x86_64", "needed": ["libtorch.so"], "soname": "a", "rpath": [], "glibc": "2.31", "libstdcxx": "a",
        "base_images": ["debian"], "executable_stack": False, "stripped": True, "undefined": 1, "unresolved": None,
    }  # fmt: skip
    component = {
        "size": 7, "device_size": 5, "containers": 2, "relocatable_containers": 0, "empty_containers": 0,
        "elf": {"80": 1}, "ptx": {"80": 1}, "lto": {}, "ptx_versions": {"8.8": 1}, "compression": {"none": 1},
        "cuda_major": 12, "torch": "any", "host": host,
    }  # fmt: skip
    finding = {"level": "error", "code": "a-code", "where": "a", "text": "b"}
    return audit_data(targets=[target], components={"vllm/_C.so": component}, findings=[finding], torch="==2.9.1")


def looked_at(page: str, least: int) -> None:
    """Insist that a page has only the elements of its templates, and shows the hostile text that often."""
    tags = Tags(page)
    assert not {"script", "img", "iframe", "link"} & tags.tags.keys()
    assert not [name for name in tags.attributes if name.startswith("on") or name in {"href", "src"}]
    shown = "".join(tags.text).count(HOSTILE) + sum(value.count(HOSTILE) for value in tags.values)
    assert shown >= least
    assert "<script" not in page
    assert "window.taken=1</" not in page


def test_hostile_texts_are_shown_as_text_in_the_build_report(tmp_path: Path) -> None:
    events = write_lines(tmp_path / "events.jsonl", end_event("moe/a.cu", 0, 100), end_event("b.cu", 5, 9, code=1))
    write_lines(tmp_path / "samples.jsonl", phase("moe/a.cu", "cicc", 1, 6), memory(1, 10**9))
    data = report_data(
        read_timeline(events),
        audit=audit(),
        wheelsmith={"version": "1", "commit": "abc"},
        slimmed_from={"name": "fat.whl", "sha256": "ab" * 32, "size": 9},
        compiler_cache={"level": "local", "trouble": ["a"], "shared": {"a": 1}},
    )
    made_of = {key: data["sources"][0][key] for key in ("sha256", "kind")}
    page = report_page(report_of(json.dumps(hostile(data)), "x"))
    assert made_of["sha256"] in page
    looked_at(page, 40)


def test_hostile_texts_are_shown_as_text_in_the_audits_page() -> None:
    report = AuditReport.model_validate_json(json.dumps(hostile(audit())))
    looked_at(html(report), 20)


def test_the_audits_page_shows_verdicts_units_and_counts() -> None:
    page = html(AuditReport.model_validate_json(json.dumps(audit())))
    text = re.sub(r"\s+", " ", "".join(Tags(page).text))
    for part in (
        "Audit of x.whl",
        "torch ==2.9.1",
        "1 native, 0 compatible, 1 JIT, 0 missing",
        "H100@12.8: 1 units",
        "vllm/_C.so: a.cu compute_80, PTX 8.8 (CUDA 12.9), no kernels",
        "error a b a-code",
        "8.8:1",
    ):
        assert part in text
    assert 'style="width:50.0%"' in page


def test_every_template_escapes_and_none_passes_a_value_as_html() -> None:
    assert environment().autoescape is True
    assert len(TEMPLATES) >= 7
    for path in TEMPLATES:
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", path.read_text()), path
        environment().get_template(path.relative_to(ROOT / "scripts").as_posix())


def test_templates_use_only_those_of_their_package_or_of_a_lower_layer() -> None:
    for path in TEMPLATES:
        mine = path.relative_to(ROOT / "scripts").parts[0]
        for other in re.findall(r'"(\w+)/[\w.]+\.html"', path.read_text()):
            assert LAYERS.index(other) >= LAYERS.index(mine), path


def test_a_value_that_a_template_needs_and_does_not_get_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="audit"):
        render("audit/page.html", title="x")
