# ruff: noqa: E501
"""A toolkit of shell programs that takes a unit apart as nvcc does: what runs is counted, what is made can be compared.

Its nvcc has the forms of `--dryrun --keep` that CUDA 12.5 and 13.0 show. Preprocessing expands NATIVE (the arch) and
LIST (all archs) where the text has them, as the real one does with __CUDA_ARCH__ and __CUDA_ARCH_LIST__.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NVCC = r"""#!/bin/bash
here=$(dirname "$0"); archs=(); dry=; keep=; out=; src=; dep=; flags=; kinds=()
while [ $# -gt 0 ]; do case "$1" in
  --dryrun) dry=1;; --keep) ;; --keep-dir) keep=$2; shift;; -o) out=$2; shift;; -MF) dep=$2; shift;; -MT) shift;;
  -gencode) a=${2#arch=compute_}; archs+=("${a%%,*}"); kinds+=("${2##*code=}"); shift;;
  -D*) flags="$flags $1";; -ftz=*) ftz=$1;; *.cu) src=$1;; esac; shift; done
list=$(IFS=,; echo "${archs[*]}"); stem=$(basename "$src" .cu); f=${keep:-${TMPDIR:-/tmp}/whole-$$}
last=${archs[-1]}; say() { echo "#\$ $*"; }
plan() {
  echo "nvcc warning : made for tests" >&2
  say _SPACE_=; say "CICC_PATH=$here/nvvm"; say "PATH=$here:$PATH"
  for a in "${archs[@]}"; do say "\"$here/gcc\" -D__CUDA_ARCH__=${a}0 -D__CUDA_ARCH_LIST__=$list$flags -E \"$src\" -o \"$f/$stem.compute_$a.cpp1.ii\" "; done
  say "\"$here/gcc\" -D__CUDA_ARCH_LIST__=$list$flags -E \"$src\" -o \"$f/$stem.cpp4.ii\" "
  [ -z "$dep" ] || say "-- Filter Dependencies -- > $dep"
  say "cudafe++ --gen_c_file_name \"$f/$stem.cudafe1.cpp\" --stub_file_name \"$stem.compute_$last.stub.c\" --gen_module_id_file --module_id_file_name \"$f/$stem.module_id\" \"$f/$stem.cpp4.ii\" "
  i=0; images=; for a in "${archs[@]}"; do
    say "\"\$CICC_PATH/cicc\" -arch compute_$a $ftz --include_file_name \"$stem.fatbin.c\" --module_id_file_name \"$f/$stem.module_id\" --gen_c_file_name \"$f/$stem.compute_$a.cudafe1.c\" --stub_file_name \"$f/$stem.compute_$a.stub.c\" --gen_device_file_name \"$f/$stem.compute_$a.cudafe1.gpu\"  \"$f/$stem.compute_$a.cpp1.ii\" -o \"$f/$stem.compute_$a.ptx\""
    say "ptxas -arch=sm_$a -m64  \"$f/$stem.compute_$a.ptx\"  -o \"$f/$stem.sm_$a.cubin\" "
    images="$images \"--image3=kind=elf,sm=$a,file=$f/$stem.sm_$a.cubin\""; done
  say "fatbinary -64 --create=\"$f/$stem.fatbin\"$images --embedded-fatbin=\"$f/$stem.fatbin.c\" "
  say "rm $f/$stem.fatbin"
  say "\"$here/gcc\" -D__CUDA_ARCH_LIST__=$list -c -x c++ \"$f/$stem.cudafe1.cpp\" -o \"$out\" "
}
[ -z "$dry" ] || { plan 2>&1; exit; }
echo whole >> "$here/ran"; mkdir -p "$f"; export CICC_PATH="$here/nvvm" PATH="$here:$PATH"
plan 2>/dev/null | sed -n 's/^#\$ //p' | grep -v '^[A-Z_]*=\|^-- \|^rm ' > "$f/script"
bash -e "$f/script"; code=$?; [ -n "$keep" ] || rm -rf "$f"; exit $code
"""
GCC = r"""#!/bin/bash
here=$(dirname "$0"); for w in "$@"; do case "$w" in -D__CUDA_ARCH__=*) arch=${w#*=};; -D__CUDA_ARCH_LIST__=*) list=${w#*=};;
  -E) e=1;; -DEXTRA=*) extra=${w#*=};; *.cu|*.cpp) src=$w;; esac; last=$w; done
echo "gcc $src" >> "$here/ran"
if [ -n "$e" ]; then { echo "# 1 \"$src\""; echo "# 1 \"<built-in>\""; echo "# 1 \"$here/header.h\" 1"; sed "s/NATIVE/${arch:-host}/g; s/LIST/$list/g; s/EXTRA/$extra/g" "$src"; } > "$last"
else d=$(dirname "$src"); { cat "$src"; cat "$d"/$(sed -n 's/^#include //p' "$src"); cat "$d"/*.fatbin.c; } > "$last"; fi
"""
CUDAFE = r"""#!/bin/bash
here=$(dirname "$0"); while [ $# -gt 0 ]; do case "$1" in --gen_c_file_name) c=$2; shift;; --stub_file_name) s=$2; shift;;
  --module_id_file_name) m=$2; shift;; --gen_module_id_file) gen=1;; *.ii) in=$1;; esac; shift; done
if [ -n "$gen" ]; then if grep -q ALONE "$in"; then printf %s "_2abb6256_1_x_cu_653995ee_$$" > "$m"; else grep -o 'unit [a-z]*' "$in" > "$m"; fi; fi
echo cudafe >> "$here/ran"; { echo "#include $s"; grep -q ALONE "$in" && cat "$m"; cat "$in"; } > "$c"
"""
CICC = r"""#!/bin/bash
here=$(dirname "$(dirname "$0")"); while [ $# -gt 0 ]; do case "$1" in --gen_c_file_name) c=$2; shift;; --stub_file_name) s=$2; shift;;
  --gen_device_file_name) g=$2; shift;; --module_id_file_name) m=$2; shift;; -arch) a=$2; shift;; -o) o=$2; shift;;
  -ftz=*) z=$1;; *.ii) in=$1;; esac; shift; done
echo "cicc $a" >> "$here/ran"; [ ! -e "$here/slow" ] || { date +%s.%N >> "$here/from"; sleep 0.7; date +%s.%N >> "$here/to"; }
grep -q "BROKEN" "$in" && { echo "x.cu(1): error: broken"; exit 2; }; grep -q "HUGE" "$in" && kill -9 $$
touch "$c" "$g"; echo "# 1 \"$s\" stub" > "$s"; { echo "ptx $a $z"; cat "$m" "$in"; } > "$o"; echo "warning of cicc $a"
"""
PTXAS = r"""#!/bin/bash
here=$(dirname "$0"); for w in "$@"; do case "$w" in -arch=*) a=${w#*=};; *.ptx) in=$w;; esac; last=$w; done
echo "ptxas $a" >> "$here/ran"; { echo "cubin $a"; sha256sum < "$in"; } > "$last"
"""
FATBINARY = r"""#!/bin/bash
here=$(dirname "$0"); for w in "$@"; do case "$w" in --create=*) c=${w#*=};; --embedded-fatbin=*) e=${w#*=};;
  --image3=*) images="$images ${w##*file=}";; esac; done
echo fatbinary >> "$here/ran"; cat $images > "$e"; cp "$e" "$c"
"""


@dataclass(frozen=True)
class Toolkit:
    """Where the programs are."""

    folder: Path

    @property
    def nvcc(self) -> str:
        return str(self.folder / "nvcc")

    def ran(self) -> list[str]:
        """Return what has run since the last question."""
        path = self.folder / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def command(self, source: Path, target: Path, archs: list[str], *options: str) -> list[str]:
        """Return a compile command as CMake gives it."""
        codes = [word for arch in archs for word in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
        made = ["-MD", "-MT", str(target), "-MF", f"{target}.d"]
        return [self.nvcc, *options, *codes, *made, "-x", "cu", "-c", str(source), "-o", str(target)]


def make_toolkit(folder: Path) -> Toolkit:
    """Write the programs."""
    programs = {"nvcc": NVCC, "gcc": GCC, "cudafe++": CUDAFE, "nvvm/cicc": CICC, "ptxas": PTXAS, "fatbinary": FATBINARY}
    for name, text in programs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return Toolkit(folder)
