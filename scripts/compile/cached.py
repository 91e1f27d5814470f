"""TODO-DOC."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.compile.build import BuildTree, Compiled, compile_units
from scripts.compile.compiler_cache import compiler_cache, headers_digest
from scripts.core.console import Console
from scripts.core.files import digest
from scripts.pipeline.wheel import Job
from scripts.recipe.costs import Unit, cost_book


def compile_cached(tree: BuildTree, job: Job, console: Console, *, only: Sequence[Unit] | None = None) -> Compiled:
    """Compile with the compiler cache, whose programs end with it."""
    with compiler_cache(
        job.compiler_cache,
        job.cache,
        tree=tree.path,
        key=digest([tree.basis, headers_digest(tree.sources)]),
        enter=tree.prefix,
        environment=tree.environment,
        console=console,
    ) as opened:
        return compile_units(
            tree,
            jobs=job.jobs,
            book=cost_book(job.recipe),
            console=console,
            keep_going=job.keep_going,
            only=only,
            compiler_cache=opened,
        )
