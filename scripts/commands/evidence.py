"""What was seen on real GPUs: docs/evidence/*.json, their pages, and README's table of them.

`python -m scripts.commands.evidence` writes the pages and the table; `--add NAME --recipe R REPORT…` first joins what
`nox -s gpu-check` wrote (several reports of one wheel on one machine) into docs/evidence/NAME.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts.commands.cli import Parser, run, user_path
from scripts.core.console import Console
from scripts.core.errors import UsageError
from scripts.core.files import write_json
from scripts.gpu_check.evidence import FOLDER, README, _read, join, pages


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    parser = Parser("evidence", __doc__ or "")
    parser.prog = "python -m scripts.commands.evidence"
    parser.add_argument("reports", nargs="*", type=user_path, metavar="REPORT", help="what gpu-check --json wrote")
    parser.add_argument("--add", metavar="NAME", help="join REPORTs into docs/evidence/NAME.json")
    parser.add_argument("--recipe", metavar="R", help="the recipe that the wheel was built from")
    parser.add_argument("--command", metavar="TEXT", default="nox -s gpu-check", help="how the reports were made")
    options = parser.parse_args(arguments)
    if bool(options.add) != bool(options.reports) or bool(options.add) != bool(options.recipe):
        raise UsageError("--add, --recipe and reports go together", fix="give all of them, or none to renew the pages")
    if options.add:
        joined = join([_read(path) for path in options.reports])
        target = FOLDER / f"{options.add}.json"
        write_json(target, {**joined, "recipe": options.recipe, "command": options.command})
        console.result(f"wrote {target}")
    for path in [*pages(), README]:
        console.result(f"wrote {path}")
    return 0


if __name__ == "__main__":
    run(main)
