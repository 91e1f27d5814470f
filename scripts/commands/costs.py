"""Enter what compile units took into a recipe's cost file: from a build tree's events, or from a wheel's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import recipe_argument
from scripts.core.console import Console, human_bytes, human_seconds
from scripts.core.errors import UsageError
from scripts.core.files import write_atomic
from scripts.core.paths import DEFAULT_RECIPE
from scripts.recipe.costs import CostData, cost_file, costs_json, read_costs
from scripts.recipe.files import load_recipe, recipe_names
from scripts.recipe.measured import enter, measurements, read_events
from scripts.report.models import report_of


def main(arguments: Sequence[str], console: Console) -> int:
    """Enter the measurements of builds into the cost file that a recipe names."""
    parser = Parser("costs", "Enter measured units into a recipe's cost file, which then orders and forecasts builds.")
    known = ", ".join(recipe_names())
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, metavar="R", help=f"a recipe file, or one of: {known}")
    parser.add_argument("--archs", type=int, metavar="N", help="number of archs, for records that do not say")
    parser.add_argument("--measured", metavar="TEXT", help="on which machine, for the file's readers")
    parser.add_argument("--fresh", action="store_true", help="forget what the file has")
    parser.add_argument(
        "record", nargs="+", type=user_path, metavar="BUILD", help="a build tree, its events.jsonl, or a wheel's report"
    )
    options = parser.parse_args(arguments)
    if options.archs is not None and options.archs < 1:
        raise UsageError(f"--archs is {options.archs}", fix="it is a number of archs: 1 or more")
    recipe = load_recipe(recipe_argument(options.recipe))
    path = cost_file(recipe)
    if not path:
        raise UsageError(
            f"the recipe {recipe.name} names no cost file", fix=f'[cost] data = "costs/{recipe.name}.json"'
        )
    old = None if options.fresh else read_costs(path)
    data = old or CostData(measured="not said", units={})
    if options.measured:
        data = data.model_copy(update={"measured": options.measured})
    for record in options.record:
        data = enter(data, read_records(record), archs=options.archs)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, costs_json(data).encode())
    show(data, path, console)
    return 0


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the compiler calls that a build tree, its events or a wheel's report tells of. Raises UsageError."""
    if not path.name.endswith(".report.json"):
        return read_events(path)
    try:
        report = report_of(path.read_bytes(), path.name)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error), fix="name a report") from error
    return measurements(map(asdict, report.units.records if report.units else ()), path)


def show(data: CostData, path: Path, console: Console) -> None:
    """Print the totals and the most expensive units."""
    console.table(str(path), [("measured", data.measured), ("units", str(len(data.units)))])
    rows = [(name, archs, item) for name, counts in data.units.items() for archs, item in counts.items()]
    rows.sort(key=lambda row: row[2].cpu_seconds, reverse=True)
    console.grid(
        ["unit", "archs", "core time", "memory"],
        [
            (name, str(archs), human_seconds(item.cpu_seconds), human_bytes(item.peak_mb * 1e6))
            for name, archs, item in rows[:10]
        ],
    )


if __name__ == "__main__":
    run(main)
