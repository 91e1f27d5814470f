"""nvcc's own steps for one unit, as `nvcc --dryrun` names them. Standard library only: it lies in the build tree.

Seen of CUDA 12.5 and 13.0: per arch the host compiler's preprocessor, cicc and ptxas; once cudafe++, fatbinary and the
host compiler, which includes what the others wrote. Whatever has another form is not understood.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import zlib

FORMAT = "wheelsmith step 1"
STORED = ("cicc", "ptxas")  # device steps: those that cost, and whose result depends on nothing but what they read
SEED = "-frandom-seed="
GENERATE = "--gen_module_id_file"
WORDS = ("--orig_src_", f"-{SEED[:-1]}")  # options whose value looks like a file and is only a word
UNREAD = (".gpu", ".cudafe1.c")  # what cicc writes besides and no step reads
READS = {  # program: the options before a file that it reads
    "cudafe++": (),
    "cicc": ("--module_id_file_name",),
    "ptxas": (),
    "fatbinary": ("file=",),
    "host": (),
}
WRITES = {  # program: the options before a file that it writes
    "cudafe++": ("--gen_c_file_name", "--module_id_file_name"),
    "cicc": ("--gen_c_file_name", "--stub_file_name", "--gen_device_file_name", "-o"),
    "ptxas": ("-o",),
    "fatbinary": ("--create=", "--embedded-fatbin="),
    "host": ("-o",),
}
_STRANGE = re.compile(r"[\\'\"$`*?;&|<>(){}\s]")  # what dryrun's quoting could change
_MARKER = re.compile(rb'^# \d+ "((?:[^"\\\n]|\\.)*)"', re.MULTILINE)


class NotUnderstoodError(Exception):
    """nvcc's steps are not those that this module knows."""


class Step:
    """One program that nvcc runs."""

    def __init__(self, words: list[str], folder: str) -> None:
        self.words, self.program = words, os.path.basename(words[0])  # noqa: PTH119
        self.kind = self.program if self.program in WRITES else "host"
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.shape: list[str] = []
        """The words with each file of this compilation replaced by what it is to the step."""
        self.said = b""
        self._key = ""
        before = ""
        for word in words:
            self._sort(word, before, folder)
            before = word
        if not self.writes:
            raise NotUnderstoodError(f"{self.program} writes nothing")

    def _sort(self, word: str, before: str, folder: str) -> None:
        """Note a word: a file that is read or written, or an option."""
        at = word.find(folder + "/")
        if self.kind == "host" and before == "-o":
            at = 0  # the object, which lies elsewhere
        if at < 0:
            if self.program in STORED and not before.startswith(WORDS) and _names_a_file(word, self.shape):
                raise NotUnderstoodError(f"{self.program} reads {word}")
            self.shape.append(word)
            return
        path = word[at:]
        option = word[:at] or before
        makes = self.kind != "cudafe++" or before != "--module_id_file_name" or GENERATE in self.words
        if makes and option.endswith(WRITES[self.kind]) and option.startswith("-"):
            self.shape.append(f"{word[:at]}<written {len(self.writes)}>")
            self.writes.append(path)
        elif (option.endswith(READS[self.kind]) and READS[self.kind]) or (not word[:at] and _is_input(before)):
            self.shape.append(f"{word[:at]}<read {len(self.reads)}>")
            self.reads.append(path)
        else:
            raise NotUnderstoodError(f"{self.program}: {word}")

    @property
    def results(self) -> list[str]:
        """The files that other steps read, by name or because they include them."""
        return [path for path in self.writes if not path.endswith(UNREAD)]

    def key(self, identity: str) -> str:
        """Return what decides the step's result: all that it reads, its options, the toolkit. "" when none is kept.

        What it reads must be there.
        """
        if self.program in STORED and not self._key:
            facts = [FORMAT, identity, self.program, self.shape[1:], [_sha256(path) for path in self.reads]]
            self._key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return self._key

    def names_again(self, process: int, seed: str) -> bool:
        """Whether cudafe++ is to run again because it put its process's number into the unit's names.

        It does so where a unit has no name that others see, and 12.x knows no seed. `seed` takes the number's place, as
        13.0 puts it there: its CRC-32. cudafe++ reads a module id that is there unless it is told to make one.
        """
        if self.kind != "cudafe++" or GENERATE not in self.words or not seed:
            return False
        path = self.words[self.words.index("--module_id_file_name") + 1]
        with open(path, "rb") as file:  # noqa: PTH123
            found = re.fullmatch(rb"(_.+)_[0-9a-f]{8}_(\d+)", file.read())
        if not found or int(found[2]) != process:
            return False
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(b"%s_%08x" % (found[1], zlib.crc32(os.fsencode(seed))))
        self.words = [word for word in self.words if word != GENERATE]
        return True


def _is_input(before: str) -> bool:
    """Whether a bare word after this one is a file that is read, not an option's value."""
    return not (before.startswith("--") and before.endswith(("_name", "-file", "-path")))


def _names_a_file(word: str, before: list[str]) -> bool:
    """Whether an option's value is a file that lies elsewhere (`--options-file=x`): its contents are in no key."""
    if word.startswith(WORDS):
        return False
    path = word.rpartition("=")[2]
    return bool(before) and (os.path.exists(path) or "options-file" in word or word.startswith(("-optf", "--optf")))  # noqa: PTH110


def _sha256(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.sha256(file.read()).hexdigest()


class Plan:
    """nvcc's steps for one unit."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.environment: dict[str, str] = {}
        self.warnings: list[str] = []
        self.dependencies = ""
        """Make's dependency file that nvcc would write, "" for none."""
        self.seed = ""
        """What names are made from where the unit gives none; "" for none."""


def read_plan(text: str, folder: str) -> Plan:
    """Read what `nvcc --dryrun --keep --keep-dir FOLDER` says. Raises NotUnderstoodError."""
    plan = Plan()
    for whole in text.splitlines():
        if not whole.startswith("#$ "):
            plan.warnings.append(whole)
            continue
        line = whole[3:]
        assignment = re.match(r"([A-Za-z_][A-Za-z_0-9]*)=(.*)", line)
        if assignment:
            plan.environment[assignment[1]] = assignment[2].strip()
        elif line.startswith("-- Filter Dependencies -- > "):
            plan.dependencies = line.rpartition("> ")[2].strip()
        elif not line.startswith("rm "):
            plan.steps.append(Step(_words(line, plan.environment), folder))
    _check(plan)
    return plan


def _words(line: str, environment: dict[str, str]) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise NotUnderstoodError(str(error)) from error
    words[0] = words[0].replace("$CICC_PATH", environment.get("CICC_PATH", "$"))
    if any("$" in word or word in {">", "<", "|", "2>", "&&", ";"} for word in words):
        raise NotUnderstoodError(line[:200])
    return words


def _check(plan: Plan) -> None:
    """Refuse a plan of another form: what is read is written before, and the host compiler comes last."""
    programs = [step.kind for step in plan.steps]
    if programs.count("cudafe++") != 1 or programs.count("fatbinary") != 1 or programs[-1:] != ["host"]:
        raise NotUnderstoodError("other steps: " + " ".join(programs))
    for step in plan.steps:
        if step.kind == "host" and ("-E" in step.words) == (step is plan.steps[-1]):
            raise NotUnderstoodError("another host step")
    written: set[str] = set()
    for step in plan.steps:
        if not written.issuperset(step.reads):
            raise NotUnderstoodError(f"{step.program} reads what no step before it writes")
        written.update(step.writes)


def make_plan(command: list[str], folder: str) -> Plan:
    """Ask nvcc for its steps. Raises NotUnderstoodError."""
    words = _without_threads(command)
    strange = [word for word in words if _STRANGE.search(word)]
    if strange or any(word in {"-G", "-g", "-lineinfo", "-dc", "-rdc=true", "-dlto"} for word in words):
        raise NotUnderstoodError("an option that is not taken apart: " + " ".join(strange))
    done = subprocess.run(
        [*words, "--dryrun", "--keep", "--keep-dir", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise NotUnderstoodError("nvcc --dryrun fails")
    plan = read_plan(done.stdout.decode("utf-8", "surrogateescape"), folder)
    plan.seed = next((word[len(SEED) :] for word in words if word.startswith(SEED)), "")
    return plan


def _without_threads(command: list[str]) -> list[str]:
    """Return the command without `--threads N`: the scheduler says how many steps run at a time."""
    kept: list[str] = []
    skip = False
    for word in command:
        if not skip and word not in {"-t", "--threads"} and not re.fullmatch(r"(-t=?|--threads=)\d+", word):
            kept.append(word)
        skip = not skip and word in {"-t", "--threads"}
    return kept


def write_dependencies(plan: Plan, command: list[str], source: str) -> None:
    """Write the dependency file that nvcc would: all files that the preprocessed texts of all archs name."""
    named = [command[at + 1] for at, word in enumerate(command[:-1]) if word in {"-MT", "-MQ"}]
    target = named[0] if named else command[command.index("-o") + 1]
    names = {source: None}
    for step in plan.steps:
        for path in step.writes if "-E" in step.words else ():
            with open(path, "rb") as file:  # noqa: PTH123
                names.update(dict.fromkeys(_files_named(file.read())))
    lines = " \\\n    ".join(name.replace(" ", "\\ ") for name in names)
    partial = f"{plan.dependencies}.partial"
    with open(partial, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        file.write(f"{target} : {lines}\n")
    os.replace(partial, plan.dependencies)  # noqa: PTH105


def _files_named(text: bytes) -> list[str]:
    found = dict.fromkeys(_MARKER.findall(text))
    names = [re.sub(rb"\\(.)", rb"\1", name).decode("utf-8", "surrogateescape") for name in found]
    return [name for name in names if not name.startswith("<") and not name.endswith("//")]
