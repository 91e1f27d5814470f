"""Compile some units of a recipe as the main job does, with its tree, launchers, scheduler and costs; link nothing.

`python -m tests.compile_units w4a8_mm_entry machete_mm_impl_part1 topk.cu -- --recipe vllm-0.20.1-cu130 --arch 9.0`.
The first words are parts of units' names; the options are those of `nox -s wheel`. It is a shard that has those units.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.commands.cli import run
from scripts.commands.wheel import main as wheel
from scripts.compile.shards import Shard
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.pipeline import wheel as pipeline
from scripts.recipe.costs import CostBook, Unit


def main(arguments: Sequence[str], console: Console) -> int:
    """Compile the units that are named before `--`. Raises UsageError for a name that no unit has."""
    names, options = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]

    def named(shard: Shard, units: Sequence[Unit], book: CostBook) -> list[Unit]:
        for name in names:
            if not any(name in unit.name for unit in units):
                raise UsageError(f"no unit has {name!r} in its name", fix="parts of names, such as topk.cu")
        return [unit for unit in units if any(name in unit.name for name in names)]

    vars(pipeline)["units_of"] = named
    return wheel([*options, "--shard", "1/1"], console)


if __name__ == "__main__":
    if "--" not in sys.argv:
        sys.exit(__doc__)
    run(main)
