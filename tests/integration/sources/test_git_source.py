"""Git sources against real servers on loopback: smart HTTP through git http-backend, and file://."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.core.cache import Cache
from scripts.core.errors import FetchError
from scripts.core.files import remove_tree
from scripts.core.paths import RECIPES
from scripts.downloads.mirrors import parse_mirrors, repository_key
from scripts.recipe.sources import GitSource
from scripts.sources.digests import tree_digest
from scripts.sources.git_process import Repository, git_program
from scripts.sources.git_source import fetch_git
from scripts.sources.types import GitTree
from tests.accesses import make_access
from tests.integration.git_servers import GitServer, Upstream, git, serving

KERNELS = {"__init__.py": b"", "matmul_ogs.py": b"def matmul():\n    return 1\n", "details/_common.py": b"X = 1\n"}
INNER = "python/triton_kernels/triton_kernels"


def noise(name: str, size: int) -> bytes:
    """Return bytes that do not compress, the same for the same name."""
    return b"".join(hashlib.sha256(f"{name}{i}".encode()).digest() for i in range(size // 32))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "srv").mkdir()
    return tmp_path / "srv"


@pytest.fixture
def server(root: Path) -> Iterator[GitServer]:
    with serving(root) as state:
        yield state


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def source(url: str, commit: str, **more: Any) -> GitSource:
    model = GitSource.model_construct(kind="git", repository=url, commit=commit)
    checked = {"kind": "git", "repository": "https://example.org/x", "commit": commit, **more}
    return GitSource.model_validate(checked).model_copy(update={"repository": model.repository})


def fetch(item: GitSource, cache: Cache, **more: Any) -> GitTree:
    recipes = more.pop("recipes", RECIPES)
    return fetch_git(item, make_access(cache, **more), recipes=recipes)


def names(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if not path.is_dir()}


@pytest.fixture
def triton(root: Path) -> Upstream:
    """A repository like triton's: the wanted folder is a small part, and history is most of it."""
    upstream = Upstream.create(root, "triton")
    for revision in range(4):
        upstream.commit({f"lib/big{i}.cpp": noise(f"{i}-{revision}", 40_000) for i in range(4)})
    upstream.commit(
        {f"{INNER}/{name}": data for name, data in KERNELS.items()}
        | {"LICENSE": b"MIT\n", "setup.py": b"setup()\n", f"{INNER}/tool.sh": b"#!/bin/sh\n"}
    )
    upstream.tag("v3.5.0", upstream.head)
    return upstream


def triton_source(url: str, upstream: Upstream, **more: Any) -> GitSource:
    return source(url, upstream.head, subdirectories=["python/triton_kernels"], path=INNER, **more)


def test_only_the_wanted_folder_and_the_licence_of_the_pinned_commit_arrive(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    pinned = triton.head
    item = triton_source(server.url("triton"), triton, tag="v3.5.0")
    triton.commit({f"{INNER}/matmul_ogs.py": b"moved on\n"})  # the default branch is elsewhere by now

    tree = fetch(item, cache)

    assert tree.commit == pinned
    assert names(tree.path) == {*KERNELS, "tool.sh"}
    assert {name: (tree.path / name).read_bytes() for name in KERNELS} == KERNELS
    top = tree.path.parents[2]
    assert names(top) == {"LICENSE", *(f"{INNER}/{name}" for name in [*KERNELS, "tool.sh"])}
    assert tree.digest == tree_digest(top)
    assert os.access(tree.path / "tool.sh", os.X_OK)
    assert 0 < tree.received < 5_000
    assert server.sent < 10_000


def test_a_stock_clone_moves_twenty_times_more(
    server: GitServer, triton: Upstream, cache: Cache, tmp_path: Path
) -> None:
    fetch(triton_source(server.url("triton"), triton), cache)
    ours, server.sent = server.sent, 0
    git(tmp_path, "clone", "-q", server.url("triton"), "stock")
    assert server.sent > 20 * ours


def test_a_second_fetch_asks_no_server(server: GitServer, triton: Upstream, cache: Cache) -> None:
    item = triton_source(server.url("triton"), triton)
    first = fetch(item, cache)
    server.requests.clear()
    second = fetch(item, cache, offline=True)
    assert (second.path, second.received, second.digest) == (first.path, 0, first.digest)
    assert server.requests == []


def test_another_selection_of_a_cached_commit_fetches_only_what_is_missing(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    fetch(triton_source(server.url("triton"), triton), cache)
    more = fetch(source(server.url("triton"), triton.head, subdirectories=["python", "setup.py"]), cache)
    assert "setup.py" in names(more.path)
    assert more.received < 500


def test_two_commits_of_one_repository_share_a_cache(server: GitServer, cache: Cache, root: Path) -> None:
    cutlass = Upstream.create(root, "cutlass")
    old = cutlass.commit({f"include/cute/{i}.hpp": noise(str(i), 4_000) for i in range(30)})
    new = cutlass.commit({"include/cute/3.hpp": b"changed\n"})
    first = fetch(source(server.url("cutlass"), old, subdirectories=["include"]), cache)
    second = fetch(source(server.url("CUTLASS").replace("CUTLASS", "cutlass"), new), cache)
    assert second.received * 20 < first.received
    assert (second.path / "include/cute/3.hpp").read_bytes() == b"changed\n"
    assert len(list((cache.root / "git").glob("*.git"))) == 1


def test_a_file_url_needs_no_server(triton: Upstream, cache: Cache) -> None:
    tree = fetch(triton_source(triton.path.as_uri(), triton, tag="v3.5.0"), cache)
    assert names(tree.path) == {*KERNELS, "tool.sh"}


def test_a_missing_commit_is_an_error_and_nothing_else_is_taken(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    with pytest.raises(FetchError, match=f"does not give out commit {'a' * 40}") as caught:
        fetch(source(server.url("triton"), "a" * 40, tag=""), cache)
    assert "no other commit or branch" in caught.value.fix[0]
    assert list((cache.root / "git-trees").iterdir()) == []


def test_a_commit_that_a_forced_push_removed_is_an_error(server: GitServer, triton: Upstream, cache: Cache) -> None:
    gone = triton.commit({"setup.py": b"bad\n"})
    triton.commit({"setup.py": b"good\n"}, orphan=True)
    for tag in git(triton.path, "tag").split():
        git(triton.path, "tag", "-d", tag)
    git(triton.path, "reflog", "expire", "--expire=now", "--all")
    git(triton.path, "gc", "-q", "--prune=now")
    with pytest.raises(FetchError, match="does not give out commit"):
        fetch(source(server.url("triton"), gone), cache)


def test_a_forced_push_does_not_matter_while_the_server_still_has_the_commit(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    pinned = triton.commit({"setup.py": b"pinned\n"})
    triton.commit({"setup.py": b"forced\n"}, orphan=True)
    tree = fetch(source(server.url("triton"), pinned, subdirectories=["setup.py"]), cache)
    assert (tree.path / "setup.py").read_bytes() == b"pinned\n"


@pytest.mark.parametrize("kind", ["annotated", "lightweight"])
def test_a_moved_tag_is_an_error(server: GitServer, triton: Upstream, cache: Cache, kind: str) -> None:
    pinned = triton.head
    moved = triton.commit({"setup.py": b"other\n"})
    triton.tag("v3.5.0", moved, annotated=kind == "annotated")
    with pytest.raises(FetchError, match=r"tag 'v3.5.0' .* is not the pinned commit") as caught:
        fetch(source(server.url("triton"), pinned, tag="v3.5.0"), cache)
    assert moved in caught.value.why


def test_a_tag_that_the_mirror_lacks_is_only_a_warning(
    server: GitServer, triton: Upstream, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(triton_source(server.url("triton"), triton, tag="v9"), cache)
    assert "has no tag 'v9'" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [2, 0])
def test_a_server_without_partial_clone_sends_the_commit_whole(
    server: GitServer, triton: Upstream, cache: Cache, protocol: int
) -> None:
    git(triton.path, "config", "uploadpack.allowFilter", "false")
    git(triton.path, "config", "uploadpack.allowAnySHA1InWant", "false")
    server.protocol_v2 = protocol == 2
    tree = fetch(triton_source(server.url("triton"), triton), cache)
    assert names(tree.path) == {*KERNELS, "tool.sh"}
    assert 160_000 < tree.received < 200_000  # all files of one commit, none of the history


def test_an_old_server_that_filters_but_gives_no_objects_by_id_still_works(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    git(triton.path, "config", "uploadpack.allowAnySHA1InWant", "false")
    server.protocol_v2 = False
    tree = fetch(triton_source(server.url("triton"), triton), cache)
    assert names(tree.path) == {*KERNELS, "tool.sh"}


def test_an_old_server_gives_out_an_older_commit_by_its_tag(server: GitServer, triton: Upstream, cache: Cache) -> None:
    git(triton.path, "config", "uploadpack.allowAnySHA1InWant", "false")
    server.protocol_v2 = False
    item = triton_source(server.url("triton"), triton, tag="v3.5.0")
    triton.commit({"setup.py": b"later\n"})
    assert fetch(item, cache).commit == item.commit


def test_a_connection_cut_in_the_middle_of_a_pack_is_tried_again(
    server: GitServer, triton: Upstream, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut_after, server.cut_requests = 300, 2
    tree = fetch(triton_source(server.url("triton"), triton), cache)
    assert names(tree.path) == {*KERNELS, "tool.sh"}
    assert "attempt 3 of 3" in capsys.readouterr().err


def test_a_connection_that_is_always_cut_leaves_nothing_behind(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    server.cut_after, server.cut_requests = 300, 99
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(triton_source(server.url("triton"), triton), cache)
    assert list((cache.root / "git-trees").iterdir()) == []
    server.cut_requests = 0
    assert names(fetch(triton_source(server.url("triton"), triton), cache).path) == {*KERNELS, "tool.sh"}


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (404, 1), (403, 1)])
def test_only_network_errors_are_tried_again(
    server: GitServer, triton: Upstream, cache: Cache, status: int, tries: int
) -> None:
    server.fail_status, server.fail_requests = status, 99
    with pytest.raises(FetchError):
        fetch(triton_source(server.url("triton"), triton), cache)
    assert len(server.requests) == tries


def test_an_unreachable_host_names_the_mirror_option_and_the_quickstart_recipe(cache: Cache) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        fetch(source(f"http://127.0.0.1:{port}/x.git", "a" * 40), cache)
    shown = " ".join(caught.value.fix)
    assert "WHEELSMITH_MIRROR" in shown
    assert "--recipe quickstart" in shown
    assert "refused" in caught.value.why


def test_offline_without_a_cached_copy_says_so(cache: Cache, server: GitServer) -> None:
    with pytest.raises(FetchError, match="is not in the cache"):
        fetch(source(server.url("triton"), "a" * 40), cache, offline=True)
    assert server.requests == []


def test_a_mirror_serves_what_the_recipe_pins_elsewhere(server: GitServer, triton: Upstream, cache: Cache) -> None:
    mirrors = parse_mirrors(f"http://127.0.0.1:{server.port}/")
    item = triton_source("https://github.com/triton", triton)
    assert names(fetch(item, cache, mirrors=mirrors).path) == {*KERNELS, "tool.sh"}


def test_a_mirror_s_repository_is_found_with_and_without_git_in_its_name(
    triton: Upstream, root: Path, cache: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    mirrors = parse_mirrors(f"{root.as_uri()}/")
    item = triton_source("https://github.com/triton.git", triton)  # the folder there is `triton`
    assert names(fetch(item, cache, mirrors=mirrors).path) == {*KERNELS, "tool.sh"}
    with pytest.raises(FetchError) as caught:
        fetch(triton_source("https://github.com/absent.git", triton), cache, mirrors=mirrors)
    assert caught.value.why.endswith("absent.git' does not appear to be a git repository")


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("over", ["file", "http"])
def test_a_mirror_that_lacks_files_of_the_commit_is_said_to_lack_them(
    server: GitServer, triton: Upstream, cache: Cache, capsys: pytest.CaptureFixture[str], *, over: str, filters: bool
) -> None:
    """As a snapshot without its large files: the server has the commit, its pack ends in the middle."""
    git(triton.path, "config", "uploadpack.allowFilter", str(filters).lower())
    lost = git(triton.path, "rev-parse", f"HEAD:{INNER}/matmul_ogs.py").strip()
    (triton.path / "objects" / lost[:2] / lost[2:]).unlink()
    url = server.url("triton") if over == "http" else triton.path.as_uri()
    with pytest.raises(FetchError, match=f"lacks objects of commit {triton.head}") as caught:
        fetch(triton_source(url, triton), cache)
    assert lost in caught.value.why
    assert caught.value.why.startswith("its server said: ")
    assert "clone --mirror" in " ".join(caught.value.fix)
    assert "attempt 2" not in capsys.readouterr().err


def test_credentials_reach_the_server_but_no_command_line_config_or_message(
    server: GitServer,
    triton: Upstream,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []
    popen = __import__("subprocess").Popen

    def spying(arguments: list[str], **more: Any) -> Any:
        seen.extend(arguments)
        return popen(arguments, **more)

    monkeypatch.setattr("scripts.core.process.subprocess.Popen", spying)
    monkeypatch.setenv("GIT_TRACE", str(cache.root / "trace.log"))  # git's own view of every process it starts
    server.credentials = "me:s3cret"
    fetch(triton_source(server.url("triton", "me:s3cret"), triton), cache)
    assert "s3cret" not in " ".join(seen)
    assert "s3cret" not in (cache.root / "trace.log").read_text()
    assert "s3cret" not in "".join(capfd.readouterr())
    assert not [p for p in (cache.root / "git").rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]


def test_netrc_works(server: GitServer, triton: Upstream, cache: Cache, tmp_path: Path) -> None:
    server.credentials = "me:s3cret"
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    assert fetch(triton_source(server.url("triton"), triton), cache).files == 5


def test_wrong_credentials_are_refused_without_a_prompt(server: GitServer, triton: Upstream, cache: Cache) -> None:
    server.credentials = "me:s3cret"
    with pytest.raises(FetchError, match="git could not fetch") as caught:
        fetch(triton_source(server.url("triton"), triton), cache)
    assert "netrc" in caught.value.fix[0]


def digests(folder: Path, files: dict[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    (folder / "list.sha256").write_text("".join(lines))
    return "list.sha256"


def test_files_that_match_their_list_are_taken(
    server: GitServer, triton: Upstream, cache: Cache, tmp_path: Path
) -> None:
    item = triton_source(server.url("triton"), triton, files_sha256=digests(tmp_path, KERNELS))
    assert fetch(item, cache, recipes=tmp_path).files == 5  # tool.sh is of a kind that the list does not speak of


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ({**KERNELS, "matmul_ogs.py": b"upstream's\n"}, "matmul_ogs.py differs"),
        ({**KERNELS, "compaction.py": b""}, "compaction.py is missing"),
        ({"__init__.py": b"", "matmul_ogs.py": KERNELS["matmul_ogs.py"]}, "details/_common.py is not in the list"),
    ],
)
def test_wrong_content_behind_a_right_name_is_refused(
    server: GitServer, triton: Upstream, cache: Cache, tmp_path: Path, listed: dict[str, bytes], complaint: str
) -> None:
    item = triton_source(server.url("triton"), triton, files_sha256=digests(tmp_path, listed))
    with pytest.raises(FetchError, match="is not the content") as caught:
        fetch(item, cache, recipes=tmp_path)
    assert complaint in caught.value.why
    assert list((cache.root / "git-trees").iterdir()) == []


@pytest.mark.parametrize("text", ["", "not a digest\n"])
def test_a_broken_list_of_digests_is_refused(triton: Upstream, cache: Cache, tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(FetchError, match="is not a list of digests"):
        fetch(triton_source(triton.path.as_uri(), triton, files_sha256="list"), cache, recipes=tmp_path)
    with pytest.raises(FetchError, match="cannot be read"):
        fetch(triton_source(triton.path.as_uri(), triton, files_sha256="none"), cache, recipes=tmp_path)


@pytest.fixture
def attention(root: Path) -> Upstream:
    """A repository like flash-attention's: CUTLASS as a submodule, another that only ROCm needs."""
    cutlass = Upstream.create(root, "cutlass")
    cutlass.commit({"include/cute/a.hpp": b"a\n", "tools/util/include/u.h": b"u\n", "examples/e.cu": noise("e", 9_000)})
    upstream = Upstream.create(root, "flash-attention")
    modules = b"".join(
        b'[submodule "%s"]\n\tpath = csrc/%s\n\turl = ../%s.git\n' % (name, name, name)
        for name in (b"cutlass", b"composable_kernel")
    )
    changes: dict[str, bytes | str] = {".gitmodules": modules, "csrc/flash_attn/api.cpp": b"api\n", "docs/x.md": b"x\n"}
    upstream.commit({**changes, "csrc/cutlass": cutlass.head, "csrc/composable_kernel": "c" * 40})
    cutlass.commit({"include/cute/a.hpp": b"newer\n"})
    return upstream


def attention_source(server: GitServer, upstream: Upstream, **more: Any) -> GitSource:
    modules = {"csrc/cutlass": upstream.gitlinks["csrc/cutlass"]}
    more = {"submodules": modules, "skip_submodules": ["csrc/composable_kernel"], **more}
    return source(server.url("flash-attention"), upstream.head, **more)


def test_submodules_arrive_at_their_pinned_commit_and_skipped_ones_stay_away(
    server: GitServer, attention: Upstream, cache: Cache
) -> None:
    tree = fetch(attention_source(server, attention), cache)
    assert (tree.path / "csrc/cutlass/include/cute/a.hpp").read_bytes() == b"a\n"
    assert not (tree.path / "csrc/composable_kernel").exists()
    assert tree.submodules == {"csrc/cutlass": attention.gitlinks["csrc/cutlass"]}


def test_a_submodule_may_be_pinned_by_the_tree_that_names_it(
    server: GitServer, attention: Upstream, cache: Cache
) -> None:
    tree = fetch(attention_source(server, attention, submodules={"csrc/cutlass": "tree"}), cache)
    assert tree.submodules == {"csrc/cutlass": attention.gitlinks["csrc/cutlass"]}


@pytest.mark.parametrize("own", [[], ["csrc/flash_attn"]])
def test_a_folder_inside_a_submodule_restricts_only_that_submodule(
    server: GitServer, attention: Upstream, cache: Cache, own: list[str]
) -> None:
    wanted = [*own, "csrc/cutlass/include", "csrc/cutlass/tools/util/include"]
    tree = fetch(attention_source(server, attention, subdirectories=wanted), cache)
    rest = set() if own else {".gitmodules", "docs/x.md"}
    inside = {"csrc/cutlass/include/cute/a.hpp", "csrc/cutlass/tools/util/include/u.h"}
    assert names(tree.path) == {"csrc/flash_attn/api.cpp", *inside} | rest


def test_a_submodule_that_the_recipe_does_not_mention_is_an_error(
    server: GitServer, attention: Upstream, cache: Cache
) -> None:
    with pytest.raises(FetchError, match="does not mention"):
        fetch(attention_source(server, attention, skip_submodules=[]), cache)


def test_a_submodule_at_another_commit_is_an_error(server: GitServer, attention: Upstream, cache: Cache) -> None:
    with pytest.raises(FetchError, match="is not at the pinned commit"):
        fetch(attention_source(server, attention, submodules={"csrc/cutlass": "d" * 40}), cache)


def test_a_submodule_that_is_not_there_is_an_error(server: GitServer, attention: Upstream, cache: Cache) -> None:
    modules = {"csrc/cutlass": attention.gitlinks["csrc/cutlass"], "csrc/gone": "d" * 40}
    with pytest.raises(FetchError, match="has no submodule 'csrc/gone'"):
        fetch(attention_source(server, attention, submodules=modules), cache)


def test_a_submodule_whose_commit_is_not_on_its_server_is_an_error(
    server: GitServer, attention: Upstream, cache: Cache
) -> None:
    attention.commit({"csrc/cutlass": "d" * 40})
    with pytest.raises(FetchError, match=r"cutlass.git does not give out commit dddd"):
        fetch(attention_source(server, attention), cache)


@pytest.mark.parametrize("modules", [None, b""])
def test_a_submodule_without_a_url_is_an_error(
    server: GitServer, attention: Upstream, cache: Cache, modules: bytes | None
) -> None:
    del attention.files[".gitmodules"]
    attention.commit({} if modules is None else {".gitmodules": modules})
    with pytest.raises(FetchError, match="has no URL"):
        fetch(attention_source(server, attention), cache)


def test_a_folder_that_is_not_there_is_an_error(triton: Upstream, cache: Cache) -> None:
    with pytest.raises(FetchError, match="has no 'python/kernels'"):
        fetch(source(triton.path.as_uri(), triton.head, subdirectories=["python/kernels"]), cache)


def test_links_inside_the_tree_are_kept_and_links_outside_refused(root: Path, cache: Cache) -> None:
    upstream = Upstream.create(root, "links")
    inside = upstream.commit({"a/b.link": b"../c.h", "c.h": b"c\n"})
    tree = fetch(source(upstream.path.as_uri(), inside), cache)
    assert (tree.path / "a/b.link").read_bytes() == b"c\n"
    assert tree.digest == tree_digest(tree.path)
    outside = upstream.commit({"a/b.link": b"../../../etc/passwd"})
    with pytest.raises(FetchError, match="is not allowed"):
        fetch(source(upstream.path.as_uri(), outside), cache)


def test_a_tree_that_writes_through_its_own_link_is_refused(root: Path, cache: Cache) -> None:
    upstream = Upstream.create(root, "evil")
    blob = git(upstream.path, "hash-object", "-w", "--stdin", stdin=b"x\n")
    entry = git(upstream.path, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    tree = git(upstream.path, "mktree", stdin=f"040000 tree {entry}\t.GIT\n".encode())
    commit = git(upstream.path, "commit-tree", "-m", "evil", tree)
    git(upstream.path, "update-ref", "refs/heads/main", commit)
    with pytest.raises(FetchError, match=r"is not allowed|could not fetch"):
        fetch(source(upstream.path.as_uri(), commit), cache)


def test_a_damaged_object_in_the_cache_is_noticed(server: GitServer, triton: Upstream, cache: Cache) -> None:
    fetch(triton_source(server.url("triton"), triton), cache)
    (repository,) = (cache.root / "git").glob("*.git")
    packs = sorted((repository / "objects/pack").glob("*.pack"), key=lambda pack: pack.stat().st_size)
    data = bytearray(packs[0].read_bytes())
    data[20:30] = bytes(10)
    packs[0].chmod(0o644)
    packs[0].write_bytes(data)
    with pytest.raises(FetchError, match=r"could not fetch|is not what commit"):
        fetch(source(server.url("triton"), triton.head, subdirectories=[INNER]), cache)


def test_missing_git_names_the_recipe_that_needs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git_program.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="git is not installed") as caught:
        git_program()
    assert "quickstart" in caught.value.fix[1]
    old = tmp_path / "git"
    old.write_text("#!/bin/sh\necho git version 2.30.2\n")
    old.chmod(0o755)
    with pytest.raises(FetchError, match="git is too old"):
        git_program()
    git_program.cache_clear()


def test_an_interrupted_fetch_ends_git_and_leaves_nothing(
    server: GitServer, triton: Upstream, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.sources.git_process._Said.take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(triton_source(server.url("triton"), triton), cache)
    monkeypatch.undo()
    assert fetch(triton_source(server.url("triton"), triton), cache).files == 5


def test_a_repository_that_a_killed_git_init_left_half_made_is_made_anew(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    source = triton_source(server.url("triton"), triton)
    repository = cache.place("git", f"{repository_key(source.repository)}.git")
    half = repository.with_name(f".{repository.name}.partial")
    half.mkdir(parents=True)
    (half / "HEAD").write_text("ref: refs/heads/main\n")
    assert fetch(source, cache).files == 5
    assert not half.exists()


def test_locks_that_a_killed_git_left_behind_do_not_stop_the_next_fetch(
    server: GitServer, triton: Upstream, cache: Cache
) -> None:
    source = triton_source(server.url("triton"), triton)
    repository = cache.place("git", f"{repository_key(source.repository)}.git")
    fetch(source, cache)
    remove_tree(cache.root / "git-trees")
    for name in ("shallow.lock", "config.lock"):
        (repository / name).touch()
    assert fetch(source, cache).files == 5


def test_local_commands_never_reach_the_network(server: GitServer, triton: Upstream, cache: Cache) -> None:
    fetch(triton_source(server.url("triton"), triton), cache)
    (path,) = (cache.root / "git").glob("*.git")
    absent = git(triton.path, "rev-parse", f"{triton.head}:setup.py")
    server.requests.clear()
    repository = Repository(path, make_access(cache))
    assert repository.local("cat-file", "--batch-check", stdin=absent.encode()).endswith(b"missing\n")
    assert server.requests == []
