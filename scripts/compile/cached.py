"""Compile units through the compiler cache, whose programs end with the compiling."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.compile.build import Compiled, compile_units
from scripts.compile.compiler_cache import CacheSettings, compiler_cache, headers_digest
from scripts.compile.device_steps import DeviceSteps
from scripts.compile.outside import compilers_digest, host_digest, outside_digest
from scripts.compile.tree import BuildTree
from scripts.core.files import digest
from scripts.downloads.access import Access
from scripts.recipe.costs import CostBook, Unit


def compile_cached(
    tree: BuildTree,
    access: Access,
    *,
    jobs: int,
    book: CostBook,
    settings: CacheSettings,
    keep_going: bool = False,
    only: Sequence[Unit] | None = None,
) -> Compiled:
    """Compile at most `jobs` units at once, all or `only` some. Raises CompileError."""
    steps = DeviceSteps(
        tree.inside(tree.path / "steps.py"), access.cache.place("compiler-cache", "steps"), compilers_digest(tree)
    )
    outside = digest([tree.basis, outside_digest(tree), host_digest(tree)])
    with compiler_cache(
        settings,
        access,
        tree=tree.path,
        key=digest([outside, headers_digest(tree.sources)]),
        outside=outside,
        enter=tree.prefix,
        environment=tree.environment,
        steps=steps,
    ) as opened:
        return compile_units(
            tree,
            jobs=jobs,
            book=book,
            console=access.console,
            keep_going=keep_going,
            only=only,
            compiler_cache=opened,
        )
