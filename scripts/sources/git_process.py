"""Running git: never a prompt, no credentials in arguments, progress shown, retries on network errors only."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from scripts.core.console import lines
from scripts.core.errors import FetchError
from scripts.core.files import remove_tree
from scripts.core.process import call, capture
from scripts.downloads.access import Access
from scripts.downloads.mirrors import VARIABLE, Address

MINIMUM = (2, 31)  # configuration through GIT_CONFIG_COUNT
ATTEMPTS = 3
CONNECT_TIMEOUT = 4.0  # seconds; git itself would wait minutes for a host that drops packets
STALL_SECONDS = 30  # below 1 kB/s for so long counts as a broken connection
DOCS = "docs/sources.md"

_NETWORK = re.compile(
    r"could not resolve|couldn't resolve|temporary failure|name or service not known|failed to connect|couldn't connect"
    r"|connection (refused|reset|timed out|closed)|network is unreachable|no route to host|timed? ?out|too slow"
    r"|early EOF|RPC failed|unexpected disconnect|hung up unexpectedly|transfer closed|recv error|recv failure"
    r"|handshake|SSL_ERROR_SYSCALL|returned error: (408|425|429|5\d\d)|empty reply",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"not our ref|unadvertised object|authentication failed|could not read username|permission denied|not found"
    r"|does not appear to be a git repository|does not exist|certificate|returned error: 4(?!08|25|29)\d\d"
    r"|dubious ownership|inflate|corrupt|mismatch|No space left|remote error",
    re.IGNORECASE,
)
# git's answers when the commit or object asked for cannot be had from this server
REFUSED = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", re.IGNORECASE)

# git's answers when the server has the commit and lacks objects of it: a mirror that was copied in part
INCOMPLETE = re.compile(
    r"unable to read (tree )?\(?[0-9a-f]{40}|pack-objects died|repository corruption on the remote side"
    r"|bad object [0-9a-f]{40}|missing (blob|tree) object",
    re.IGNORECASE,
)

# variables that point git at another repository than the one in the cache
_LOCAL = re.compile(r"GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE.*|NAMESPACE|CONFIG_(COUNT|KEY|VALUE).*)")
_HELPER = '!f() { test "$1" = get && echo "username=$WHEELSMITH_GIT_USER" && echo "password=$WHEELSMITH_GIT_PASS"; }; f'


# git's answers when there is no repository under a URL: over a path, http, ssh hosts
NO_REPOSITORY = re.compile(
    r"does not appear to be a git repository|repository .*not found|does not exist", re.IGNORECASE
)


def reason(text: str) -> str:
    """Return the one line of git's output that says why: the server's own words, else git's first complaint.

    git ends with advice ("and the repository exists."), which is no reason.
    """
    said = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (
        r"(?:fatal: )?remote(?: error)?: (?!$)(?!Enumerating|Counting|Compressing|Total)(.+)",
        r"fatal: (.+)",
    ):
        found = [match[1] for line in said if (match := re.fullmatch(pattern, line))]
        if found:
            return found[-1] if "remote" in pattern else found[0]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or [""])[0]


class GitError(Exception):
    """Git ended with an error; `text` is what it said."""

    def __init__(self, text: str, *, network: bool) -> None:
        super().__init__(text)
        self.text = text
        self.network = network


@functools.cache
def git_program() -> str:
    """Return the path of git. Raises FetchError when it is absent or older than 2.31."""
    program = shutil.which("git")
    if program is None:
        raise FetchError(
            "git is not installed",
            why="this recipe's sources are on git hosts, and `git` is not on PATH",
            fix=["install git, for example: apt-get install git", "nox -s wheel -- --recipe quickstart needs no git"],
            docs=f"{DOCS}#git",
        )
    shown = capture([program, "--version"])[1]
    match = re.search(r"(\d+)\.(\d+)", shown)
    if match is None or (int(match[1]), int(match[2])) < MINIMUM:
        raise FetchError(
            f"git is too old: {shown.strip() or program}",
            why="wheelsmith needs git 2.31 (March 2021) or newer",
            fix="install a newer git, for example from your distribution's backports",
            docs=f"{DOCS}#git",
        )
    return program


@dataclass(frozen=True)
class Repository:
    """A bare repository in the cache. Local commands never touch the network; `fetch` does and retries."""

    path: Path
    access: Access

    def create(self) -> None:
        """Make the repository unless it is there; put its configuration (which git changes) back to ours."""
        if not self.path.exists():
            self._initialise()
        (self.path / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")

    def _initialise(self) -> None:
        """Make the repository beside its place and rename it: a killed `git init` leaves a half-made one."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        remove_tree(partial)
        _run(["init", "--quiet", "--bare", str(partial)], self.path.parent, self._environment({}))
        partial.rename(self.path)

    def local(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run a command that needs no network. Raises GitError."""
        return _run(arguments, self.path, self._environment({}), stdin=stdin)

    def local_file(self, *arguments: str, stdin: bytes, output: IO[bytes]) -> None:
        """Run a command that needs no network with its output in a file. Raises GitError."""
        _run(arguments, self.path, self._environment({}), stdin=stdin, output=output)

    def fsck(self, commit: str) -> None:
        """Check all that is there, and that `commit` is whole but for blobs not asked for. Raises GitError."""
        promised = {"remote.origin.promisor": "true", "remote.origin.url": "none"}
        _run(["fsck", "--no-dangling", "--no-progress", commit], self.path, self._environment(promised))

    def adopt(self, pack: Path, commit: str) -> None:
        """Take over the objects of a pack that holds `commit` without its history. Raises GitError."""
        with pack.open("rb") as file:
            arguments = ["index-pack", "--stdin", "--fix-thin", "--promisor=bundle"]
            _run(arguments, self.path, self._environment({}), given=file)
        shallow = self.path / "shallow"
        known = set(shallow.read_text().split()) if shallow.exists() else set()
        shallow.write_text("".join(f"{sha}\n" for sha in sorted({*known, commit})))
        self.fsck(commit)
        self.local("update-ref", f"refs/wheelsmith/{commit}", commit)

    def fetch(self, remote: Address, *arguments: str, stdin: bytes = b"") -> int:
        """Run `git fetch origin …` against `remote`; return the bytes of the packs received.

        For objects fetched by id, nothing that is here is offered: a server would conclude from a commit
        that we have all its files, which a partial clone has not.
        Network errors are retried with back-off. Raises GitError when git refuses or the network stays away.
        """
        before = self.pack_bytes()
        try:
            command = ("fetch", "--progress", "--no-tags", "--no-write-fetch-head", *arguments)
            offer = ("-c", "fetch.negotiationAlgorithm=noop") if {"--stdin", "--no-filter"} & {*arguments} else ()
            self._networked(remote, (*offer, *command), stdin)
        finally:
            self.create()  # git notes the remote as a promisor: local commands must not fetch behind our back
        return self.pack_bytes() - before

    def remote_tag(self, remote: Address, tag: str) -> str | None:
        """Return the commit that `tag` names on the server, None when it has no such tag. Raises GitError."""
        ref = f"refs/tags/{tag}"
        answer = self._networked(remote, ("ls-remote", "origin", ref, f"{ref}^{{}}"), b"").decode()
        found = {name: sha for sha, _, name in (line.partition("\t") for line in answer.splitlines())}
        return found.get(f"{ref}^{{}}", found.get(ref))

    def pack_bytes(self) -> int:
        """Size of all packs in bytes: what the wire carried, without protocol framing."""
        return sum(pack.stat().st_size for pack in (self.path / "objects" / "pack").glob("*.pack"))

    def _networked(self, remote: Address, arguments: Sequence[str], stdin: bytes) -> bytes:
        environment = self._environment(_remote_settings(remote), remote)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _probe(remote.url)
                return self._shown(arguments, environment, stdin, remote)
            except GitError as failure:
                if not failure.network or attempt == ATTEMPTS:
                    raise
                delay = 1.0 * 2 ** (attempt - 1)
                said = reason(failure.text)
                self.access.console.warn(f"{remote.url}: {said}; attempt {attempt + 1} of {ATTEMPTS} in {delay:.0f} s")
                self.access.pause(delay)
        raise AssertionError("unreachable")  # pragma: no cover

    def _shown(self, arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes, remote: Address) -> bytes:
        last = [f"{remote.url}: connecting"]
        with self.access.console.progress(lambda: lines(" " * 10 + last[0]), lambda: last[0]) as progress:

            def show(line: str) -> None:
                last[0] = f"{remote.url}: {line}"
                progress.tick()

            return _run(arguments, self.path, environment, stdin=stdin, on_line=show)

    def _environment(self, settings: Mapping[str, str], remote: Address | None = None) -> dict[str, str]:
        """Return git's environment: the user's, without what points at other repositories, with settings on top."""
        environment = {name: value for name, value in self.access.environment.items() if not _LOCAL.fullmatch(name)}
        environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "GIT_NO_LAZY_FETCH": "1"}
        environment.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=10")
        if remote and self.access.ca_bundle:
            environment.setdefault("GIT_SSL_CAINFO", self.access.ca_bundle)
        if remote and (remote.username or remote.password):
            environment |= {"WHEELSMITH_GIT_USER": remote.username, "WHEELSMITH_GIT_PASS": remote.password}
        environment["GIT_CONFIG_COUNT"] = str(len(settings))
        for index, (key, value) in enumerate(settings.items()):
            environment[f"GIT_CONFIG_KEY_{index}"] = key
            environment[f"GIT_CONFIG_VALUE_{index}"] = value
        return environment


def unreachable(url: str) -> str:
    """Return why a TCP connection to the URL's host fails, "" when it does not (or a proxy or file is used)."""
    parts = urlsplit(url)
    port = {"https": 443, "http": 80, "ssh": 22}.get(parts.scheme)
    host = parts.hostname
    if port is None or host is None:
        return ""
    proxied = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    if proxied or parts.scheme == "ssh":  # ssh's own configuration may send it elsewhere
        return ""
    try:
        socket.create_connection((host, parts.port or port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        return f"failed to connect to {host}: {error.strerror or error}"
    return ""


def _probe(url: str) -> None:
    if cause := unreachable(url):
        raise GitError(cause, network=True)


def network_error(url: str, failure: GitError) -> FetchError:
    """Return the error for a git host that cannot be reached."""
    return FetchError(
        f"{url} cannot be reached",
        why=reason(failure.text),
        fix=[
            "check the network and HTTPS_PROXY (or ~/.gitconfig's http.proxy), then run again: what arrived is kept",
            f"fetch from a mirror: {VARIABLE}='https://github.com/=https://your-mirror/' (or file:///path)",
            "bring the sources on a disk: nox -s fetch -- --from-bundle FILE",
            "build the recipe that needs no git host: nox -s wheel -- --recipe quickstart",
        ],
        docs=f"{DOCS}#mirrors",
    )


def incomplete_error(url: str, commit: str, failure: GitError) -> FetchError:
    """Return the error for a server that has a commit and lacks some of its objects."""
    words = [match[1] for line in failure.text.splitlines() if (match := re.match(r"remote: (?:fatal: )?(.+)", line))]
    return FetchError(
        f"{url} lacks objects of commit {commit}",
        why="its server said: " + "; ".join(word.strip() for word in words or [reason(failure.text)]),
        fix=[
            f"see what it lacks, on its machine: git -C REPOSITORY fsck --connectivity-only {commit}",
            "complete it: git clone --mirror URL-OF-THE-ORIGINAL (not a partial clone, not a copy without large files)",
            "let it serve single files, others may then be absent: git config uploadpack.allowAnySHA1InWant true",
        ],
        detail=failure.text,
        docs=f"{DOCS}#mirrors",
    )


def _remote_settings(remote: Address) -> dict[str, str]:
    settings = {
        "remote.origin.url": remote.url,
        "fetch.unpackLimit": "1",
        "transfer.unpackLimit": "1",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": str(STALL_SECONDS),
        "protocol.version": "2",
    }
    if remote.username or remote.password:
        host = "{0.scheme}://{0.netloc}".format(urlsplit(remote.url))
        settings[f"credential.{host}.helper"] = _HELPER
    return settings


def _run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    stdin: bytes = b"",
    given: IO[bytes] | None = None,
    output: IO[bytes] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> bytes:
    """Run git, ended whole when we are told to end; return its stdout. Raises GitError."""
    heard = _Said(on_line)
    with tempfile.TemporaryFile() as typed:
        typed.write(stdin)
        typed.seek(0)
        done = call(
            [git_program(), *arguments],
            environment=environment,
            limit=None,
            cwd=folder,
            stdin=given or typed,
            stdout=output,
            on_error=heard.take,
        )
    if done.code:
        raise _failure(heard.lines(), arguments, done.code)
    return done.out


class _Said:
    """git's stderr: progress lines (ended by a carriage return) are shown and not kept."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._kept, self._rest = on_line, list[str](), b""

    def take(self, block: bytes) -> None:
        """Hear the next bytes."""
        *whole, self._rest = re.split(rb"(?<=[\r\n])", self._rest + block)
        for raw in whole:
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._on_line(line.removeprefix("remote: "))
                if raw.endswith(b"\n") and not re.search(r"\d+% \(\d+/\d+\)|, done\.$|^remote: Enumerating", line):
                    self._kept.append(line)

    def lines(self) -> list[str]:
        """Return what was kept."""
        rest = self._rest.decode(errors="replace").strip()
        return [*self._kept, rest] if rest else self._kept


def _failure(said: list[str], arguments: Sequence[str], code: int) -> GitError:
    text = "\n".join(said) or f"git {arguments[0]} ended with exit code {code}"
    final = _FINAL.search(text) or INCOMPLETE.search(text)
    return GitError(text, network=bool(_NETWORK.search(text)) and not final)
