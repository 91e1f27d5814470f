"""Command lock: a recipe's pins out of upstream's own files.

Commits that upstream names itself are taken as they are. A tag is resolved by its server, unless another recipe pins
the same tag of the same repository already; so are the commits of submodules. What cannot be resolved is an error.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.commands.cli import Parser, run
from scripts.commands.options import add_cache_options, open_access
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.core.files import write_atomic
from scripts.core.paths import RECIPES
from scripts.cuda.labels import cuda_label
from scripts.downloads.access import Access
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.written import recipe_text
from scripts.sources.fetch import source_tree
from scripts.toolchain.locks import compile_lock
from scripts.upstream.pins import (
    Resolver,
    _source,
    recipe_data,
    remarks,
    source_table,
    torch_cuda,
    torch_toolkit,
)
from scripts.upstream.tree import Upstream, read_upstream


def main(arguments: Sequence[str], console: Console) -> int:
    """Print or write the recipe of a vLLM version."""
    options = _options(arguments)
    if options.package != "vllm":
        raise UsageError(f"lock knows vllm only, not {options.package!r}", fix="nox -s lock -- vllm 0.16.0")
    if not re.fullmatch(r"\d+(\.\d+)+((a|b|rc|\.post)\d+)?", options.version):
        raise UsageError(f"{options.version!r} is not a version of vLLM", fix="nox -s lock -- vllm 0.16.0")
    if options.cuda and not re.fullmatch(r"[0-9]+\.[0-9]+", options.cuda):
        raise UsageError(f"--cuda {options.cuda!r} is not a CUDA version", fix="--cuda 12.8")
    access = open_access(options, console)
    resolver = Resolver(access, [load_recipe(name) for name in recipe_names()], strict=options.write)
    table = source_table(options.version, options.source, resolver)
    console.stage("lock", f"vllm {options.version} from {table['kind']}")
    upstream = read_upstream(source_tree(_source(table), access))
    with tempfile.TemporaryDirectory() as folder:
        wanted, locked = Path(folder) / "build.in", Path(folder) / "build.txt"
        cuda = options.cuda or _resolve_cuda(upstream, wanted, locked, access)
        toolkit = torch_toolkit(locked.read_text()) if locked.exists() else ""
        data = recipe_data(options.version, table, upstream, resolver, cuda=cuda, toolkit=toolkit)
        text = "#:schema ../docs/recipe.schema.json\n" + recipe_text(data)
        if options.write:
            packages = data["toolchain"].get("cuda_packages", [])
            if options.cuda or packages:
                _resolve_cuda(upstream, wanted, locked, access, more=packages)
            _write(options.version, cuda, text, locked.read_bytes(), access)
        else:
            console.result(text)
    for sentence in remarks(upstream, data):
        console.note(sentence)
    if resolver.unresolved:
        console.warn(f"no server answered for: {'; '.join(resolver.unresolved)}")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("lock", "Read a vLLM version's own files and print the recipe that pins all it fetches.")
    parser.add_argument("package", help="vllm")
    parser.add_argument("version", help="version, such as 0.16.0")
    parser.add_argument("--source", choices=["auto", "sdist", "git"], default="auto", help="where the source is from")
    parser.add_argument("--cuda", default="", help="CUDA of torch (default: what the locked torch was built with)")
    parser.add_argument("--write", action="store_true", help="write recipes/NAME.toml and its lock file")
    add_cache_options(parser)
    return parser.parse_args(arguments)


def _resolve_cuda(upstream: Upstream, wanted: Path, locked: Path, access: Access, *, more: Sequence[str] = ()) -> str:
    """Resolve the build environment with uv; the CUDA of torch follows from what torch depends on."""
    requirements = [f"torch=={upstream.torch}", *more, *upstream.build_requirements, "build"]
    wanted.write_text("".join(f"{line}\n" for line in requirements))
    compile_lock([wanted], locked, access.environment)
    return torch_cuda(locked.read_text())


def _write(version: str, cuda: str, text: str, locked: bytes, access: Access) -> None:
    name = f"vllm-{version}-{cuda_label(cuda)}"
    path = RECIPES / f"{name}.toml"
    if path.exists():
        raise UsageError(
            f"{path.name} exists already",
            why="it may hold choices that are yours",
            fix=f"compare: nox -s lock -- vllm {version}",
        )
    write_atomic(RECIPES / "locks" / f"{name}.txt", locked)
    write_atomic(path, text.encode())
    load_recipe(name)
    access.console.result(f"{path} (choose its patches, archs and components)")
    access.console.note(f"cache: {access.cache.root}")


if __name__ == "__main__":
    run(main)
