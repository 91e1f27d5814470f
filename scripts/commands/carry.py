"""Make what a GPU machine without network needs for gpu-check.

`python -m scripts.commands.carry WHEEL… --have FILE --out DIR`.

DIR/load1, DIR/load2, … each stay under --limit MiB: the dependencies that the machine lacks (one .tar.xz), wheelsmith's
own scripts, and the wheels as they are. On the machine, `bash DIR/loadN/put.sh` unpacks a load below
/tmp/wheelsmith-gpu; the last load's run.sh then checks every wheel in one command. docs/gpu-check.md tells more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.commands.cli import Parser, run, user_path
from scripts.commands.options import add_cache_options, open_access
from scripts.core.console import Console, human_bytes
from scripts.core.errors import UsageError
from scripts.core.paths import ROOT
from scripts.gpu_check.loads import PYTHON, have, own_scripts, packed_site, resolve, spread, wanted, write_load


def main(arguments: Sequence[str], console: Console) -> int:
    """Run the command; return its exit code."""
    parser = Parser("carry", __doc__ or "")
    parser.prog = "python -m scripts.commands.carry"
    parser.add_argument("wheels", nargs="+", type=user_path, metavar="WHEEL", help="to be checked there")
    parser.add_argument(
        "--have",
        type=user_path,
        default=ROOT / "requirements" / "gpu-machine.txt",
        metavar="FILE",
        help="the packages that the machine has, one name a line (default: requirements/gpu-machine.txt)",
    )
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--limit", type=int, default=60, metavar="MIB", help="per load (default: 60 MiB)")
    parser.add_argument("--python", default=PYTHON, metavar="X.Y", help="the machine's Python (default: 3.12)")
    add_cache_options(parser)
    options = parser.parse_args(arguments)
    if options.out.exists() and any(options.out.iterdir()):
        raise UsageError(f"{options.out} is not empty", fix="name a new folder: nothing is overwritten here")
    access = open_access(options, console)
    names = have(options.have)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        console.stage("resolve", f"what {len(options.wheels)} wheels need on Python {options.python}")
        pins = resolve(wanted(options.wheels, options.python), names, scratch, access, options.python)
        site = packed_site(pins, access, options.python)
        pieces = [site, own_scripts(scratch / "tool.tar.xz"), *options.wheels]
        loads = spread(pieces, options.limit << 20)
        for number, load in enumerate(loads, 1):
            write_load(options.out / f"load{number}", load, last=number == len(loads))
            size = sum(piece.stat().st_size for piece in load)
            console.result(f"load{number}  {human_bytes(size):>9}  {', '.join(piece.name for piece in load)}")
    return 0


if __name__ == "__main__":
    run(main)
