"""Units compiled by nvcc's own steps: the same objects, no device step twice, and nvcc whole where they do not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.compile.admission import Admission
from scripts.compile.device_steps import DeviceSteps, put_programs, read_events
from scripts.recipe.costs import CostBook, Estimate
from tests.toolkit import Toolkit, make_toolkit


class Bench:
    """A build tree's programs, a toolkit, a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toolkit: Toolkit = make_toolkit(folder / "cuda")
        self.tree = folder / "tree"
        self.tree.mkdir()
        put_programs(self.tree, Path(sys.executable))
        self.steps = DeviceSteps(self.tree / "steps.py", folder / "store", "toolkit 1")
        self.source = folder / "x.cu"
        self.source.write_text("unit x\nkernel for NATIVE\n")
        self.events = self.tree / "events.jsonl"

    def start(self, target: str, archs: list[str], *options: str, admission: str = "") -> subprocess.Popen[bytes]:
        settings = {"WHEELSMITH_EVENTS": str(self.events), "TMPDIR": str(self.tree), "WHEELSMITH_ADMISSION": admission}
        command = self.toolkit.command(self.source, self.folder / target, archs, *options)
        return subprocess.Popen(
            [self.steps.program, *command],
            env={"PATH": os.environ["PATH"], **self.steps.variables(), **settings},
            stderr=subprocess.PIPE,
        )

    def compile(self, target: str, archs: list[str], *options: str) -> tuple[int, str]:
        child = self.start(target, archs, *options)
        _, said = child.communicate(timeout=60)
        return child.returncode, said.decode()

    def whole(self, archs: list[str], *options: str) -> bytes:
        """Return what nvcc itself makes of the source."""
        target = self.folder / "whole.o"
        keep = self.folder / "keep"
        keep.mkdir(exist_ok=True)
        command = self.toolkit.command(self.source, target, archs, *options)
        subprocess.run([*command, "--keep", "--keep-dir", str(keep)], check=True, stdout=subprocess.DEVNULL)
        self.toolkit.ran()
        return target.read_bytes().replace(str(keep).encode(), b"FOLDER")

    def made(self, target: str) -> bytes:
        """Return what steps.py made, without the name of its folder: the stub names itself."""
        stub = next(line for line in (self.folder / target).read_text().split('"') if "/steps-" in line)
        return (self.folder / target).read_bytes().replace(bytes(Path(stub).parent), b"FOLDER")

    def device(self) -> list[str]:
        return sorted(line for line in self.toolkit.ran() if line.startswith(("cicc", "ptxas", "whole")))

    def last(self) -> dict[str, object]:
        return list(read_events(self.events, 0))[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_added_arch_costs_its_own_steps_and_one_out_of_many_none(bench: Bench) -> None:
    assert bench.compile("a.o", ["90"])[0] == 0
    assert bench.device() == ["cicc compute_90", "ptxas sm_90"]
    assert bench.made("a.o") == bench.whole(["90"])
    assert bench.compile("b.o", ["90", "120"])[0] == 0
    assert bench.device() == ["cicc compute_120", "ptxas sm_120"]
    assert bench.made("b.o") == bench.whole(["90", "120"])
    assert bench.compile("c.o", ["120"])[0] == 0
    assert bench.device() == []
    assert bench.made("c.o") == bench.whole(["120"])
    assert bench.steps.counts(bench.events, 0) == {
        "hits": 4,
        "misses": 4,
        "saved_seconds": pytest.approx(0, abs=2),
        "whole": 0,
    }


@pytest.mark.parametrize(
    ("text", "options", "again"),
    [
        ("unit x\nlist LIST\n", (), True),  # the text uses the list of archs
        ("unit x\nlist NATIVE\n", ("-DENABLE_SM120=1",), False),  # another arch's macro, which it does not use
        ("unit x\nlist EXTRA\n", ("-DEXTRA=1",), True),
        ("unit x\nlist NATIVE\n", ("-ftz=true",), True),  # an option of the step itself
        ("unit y\nlist NATIVE\n", (), True),
    ],
)
def test_what_a_step_reads_decides_and_nothing_else(
    bench: Bench, text: str, options: tuple[str, ...], *, again: bool
) -> None:
    bench.source.write_text(text.replace("unit y", "unit x"))
    bench.compile("a.o", ["90"])
    bench.device()
    bench.source.write_text(text)
    assert bench.compile("b.o", ["90", "120"], *options)[0] == 0
    assert ("cicc compute_90" in bench.device()) is again
    assert bench.made("b.o") == bench.whole(["90", "120"], *options)


def test_a_unit_that_would_be_named_after_a_process_is_named_after_its_seed(bench: Bench) -> None:
    bench.source.write_text("unit x\nALONE\nkernel for NATIVE\n")
    assert bench.compile("a.o", ["90"], "-frandom-seed=foo")[1].splitlines()[1:] == ["warning of cicc compute_90"]
    assert bench.toolkit.ran().count("cudafe") == 2
    assert b"_2abb6256_1_x_cu_8c736521" in (bench.folder / "a.o").read_bytes()  # as nvcc 13.0 names it
    assert bench.compile("b.o", ["90"], "-frandom-seed=foo")[0] == 0
    assert bench.device() == []
    assert bench.made("b.o") == bench.made("a.o")
    assert bench.compile("c.o", ["90"])[0] == 0
    assert bench.device() == ["cicc compute_90", "ptxas sm_90"]
    assert b"_2abb6256_1_x_cu_653995ee_" in (bench.folder / "c.o").read_bytes()


def test_another_toolkit_takes_nothing_over(bench: Bench) -> None:
    bench.compile("a.o", ["90"])
    bench.device()
    bench.steps = DeviceSteps(bench.steps.program, bench.steps.store, "toolkit 2")
    bench.compile("a.o", ["90"])
    assert bench.device() == ["cicc compute_90", "ptxas sm_90"]


def test_warnings_are_said_again_and_dependencies_are_those_of_the_texts(bench: Bench) -> None:
    first = bench.compile("a.o", ["90"])
    second = bench.compile("b.o", ["90"])
    assert first == second
    assert first[1].splitlines() == ["nvcc warning : made for tests", "warning of cicc compute_90"]
    header = bench.toolkit.folder / "header.h"
    made = (bench.folder / "a.o.d").read_text()
    assert made == f"{bench.folder}/a.o : {bench.source} \\\n    {header}\n"
    assert not list(bench.tree.glob("steps-*"))


def test_damaged_entries_are_made_again(bench: Bench) -> None:
    bench.compile("a.o", ["90"])
    right = bench.made("a.o")
    bench.device()
    for path in bench.steps.store.glob("??/*"):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    assert bench.compile("a.o", ["90"])[0] == 0
    assert bench.device() == ["cicc compute_90", "ptxas sm_90"]
    assert bench.made("a.o") == right


def test_a_store_that_cannot_be_written_costs_no_build(bench: Bench) -> None:
    bench.steps.store.write_text("a file")
    assert bench.compile("a.o", ["90"])[0] == 0
    assert bench.made("a.o") == bench.whole(["90"])


def test_a_source_that_is_wrong_is_nvccs_to_judge(bench: Bench) -> None:
    bench.source.write_text("unit x\nBROKEN\n")
    child = bench.start("a.o", ["90"])
    child.communicate(timeout=60)
    assert child.returncode == 2
    assert "whole" in bench.device()
    assert bench.last()["whole"] == "a step ended with 2"


def test_a_killed_step_is_a_killed_unit(bench: Bench) -> None:
    bench.source.write_text("unit x\nHUGE\n")
    assert bench.compile("a.o", ["90", "120"])[0] == 137
    assert "whole" not in bench.device()


@pytest.mark.parametrize("options", [("-G",), ("-dlto",), ('-DNAME="x y"',), ("-rdc=true",)])
def test_options_that_are_not_taken_apart_go_to_nvcc(bench: Bench, options: tuple[str, ...]) -> None:
    assert bench.compile("a.o", ["90"], *options)[0] == 0
    assert "whole" in bench.device()
    assert "not taken apart" in str(bench.last()["whole"])


def test_other_steps_than_those_known_go_to_nvcc(bench: Bench) -> None:
    nvcc = Path(bench.toolkit.nvcc)
    nvcc.write_text(nvcc.read_text().replace('say "fatbinary', 'say "nvlink a b"; say "fatbinary'))
    bench.compile("a.o", ["90"])
    assert "whole" in bench.device()
    assert bench.last()["whole"] == "nvlink writes nothing"


def test_a_step_that_reads_a_file_from_elsewhere_goes_to_nvcc(bench: Bench) -> None:
    nvcc = Path(bench.toolkit.nvcc)
    nvcc.write_text(nvcc.read_text().replace("-m64 ", "-m64 --options-file=options.txt "))
    bench.compile("a.o", ["90"])
    assert "whole" in bench.device()
    assert bench.last()["whole"] == "ptxas reads --options-file=options.txt"


@pytest.mark.parametrize("option", ["--frandom-seed ", "--frandom-seed=", "--orig_src_file_name "])
def test_a_path_that_is_only_a_word_is_no_file_to_read(bench: Bench, option: str) -> None:
    """The seed of our names is the path of the source, which exists where places have fixed names."""
    nvcc = Path(bench.toolkit.nvcc)
    nvcc.write_text(nvcc.read_text().replace("-arch compute_$a", f"-arch compute_$a {option}{nvcc}"))
    bench.compile("a.o", ["90"])
    assert "whole" not in bench.last()
    assert bench.last()["misses"] == 2


def test_two_runs_of_a_unit_do_not_take_each_others_files(bench: Bench) -> None:
    """As when ccache is killed, its steps.py goes on, and the unit is compiled again."""
    cicc = bench.toolkit.folder / "nvvm" / "cicc"
    cicc.write_text(cicc.read_text().replace('echo "ptx $a $z"; cat', 'echo "ptx $a $z"; sleep 1; cat'))
    first = bench.start("a.o", ["90"])
    deadline = time.monotonic() + 30
    while not list(bench.tree.glob("steps-*/*.ptx")) and time.monotonic() < deadline:
        time.sleep(0.02)
    again = bench.start("a.o", ["90"])
    for child in (first, again):
        child.communicate(timeout=60)
    assert (first.returncode, again.returncode) == (0, 0)
    assert bench.compile("a.o", ["90"])[0] == 0
    assert bench.made("a.o") == bench.whole(["90"])
    assert not list(bench.tree.glob("steps-*"))


def test_a_folder_whose_name_is_not_utf8(bench: Bench) -> None:
    place = bench.tree / os.fsdecode(b"\xff")
    place.mkdir()
    words = bench.toolkit.command(bench.source, bench.folder / "a.o", ["90"])
    settings = {"WHEELSMITH_EVENTS": str(bench.events), "TMPDIR": str(place), "PATH": os.environ["PATH"]}
    environment = {**bench.steps.variables(), **settings}
    assert subprocess.run([bench.steps.program, *words], env=environment, check=False).returncode == 0
    assert bench.last()["misses"] == 2


def test_host_code_and_other_commands_pass_through(bench: Bench) -> None:
    done = subprocess.run(
        [bench.steps.program, "echo", "-c", "hello"], env=bench.steps.variables(), capture_output=True, check=True
    )
    assert done.stdout == b"-c hello\n"


def intervals(folder: Path) -> list[tuple[float, float]]:
    return list(
        zip(
            sorted(float(x) for x in (folder / "from").read_text().split()),
            sorted(float(x) for x in (folder / "to").read_text().split()),
            strict=True,
        )
    )


@pytest.mark.parametrize(("jobs", "together"), [(1, False), (2, True)])
def test_device_steps_run_side_by_side_when_the_scheduler_has_a_free_turn(
    bench: Bench, jobs: int, *, together: bool
) -> None:
    (bench.toolkit.folder / "slow").touch()
    admission = Admission(CostBook(None, Estimate(1.0, 1_000_000)), jobs=jobs, free=lambda: 64 << 30)
    socket = bench.tree / "admission"
    ended = threading.Event()
    with admission.listening(socket):

        def keep() -> None:
            while not ended.wait(0.02):
                admission.tick()

        ticking = threading.Thread(target=keep)
        ticking.start()
        launcher = [sys.executable, "-S", "-E", str(bench.tree / "launcher.py")]
        command = bench.toolkit.command(bench.source, bench.folder / "a.o", ["90", "120"])
        settings = {
            "WHEELSMITH_EVENTS": str(bench.events),
            "TMPDIR": str(bench.tree),
            "WHEELSMITH_ADMISSION": str(socket),
        }
        switch = bench.tree / "switch.json"
        switch.write_text(
            json.dumps({"command": [str(bench.steps.program)], "environment": {}, "folder": str(bench.tree)})
        )
        try:
            subprocess.run(
                [*launcher, *command],
                env={**os.environ, **bench.steps.variables(), **settings, "WHEELSMITH_COMPILER_CACHE": str(switch)},
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=60,
            )
        finally:
            ended.set()
            ticking.join()
    first, second = intervals(bench.toolkit.folder)
    assert (second[0] < first[1]) is together
    assert admission.running == 0
