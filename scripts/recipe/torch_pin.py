"""What a wheel says of the torch it was compiled against: its part of the label, and the requirement in METADATA."""

from __future__ import annotations

import re

from packaging.version import InvalidVersion, Version

STABLE_UNTIL = "3"  # the stable ABI is promised within a major version


def torch_label(version: str) -> str:
    """Return a torch's part of a version label, each torch another: `torch2.7.0a0.nv2502` for `2.7.0a0+nv25.02`.

    The local part is one word: numbers between dots lose their zeros in a PEP 440 version, and `25.02` is not `25.2`.
    """
    public, _, local = version.partition("+")
    try:
        public = Version(public).public
    except InvalidVersion:
        public = re.sub(r"[^a-z0-9]+", ".", public.lower()).strip(".")
    word = re.sub(r"[^a-z0-9]", "", local.lower())
    if word.isdigit():
        word = f"local{word}"
    return f"torch{public.replace('!', '.')}" + (f".{word}" if word else "")


def torch_requirement(version: str, *, stable_since: str = "") -> str:
    """Return the specifier with which a wheel asks for exactly this torch, or for a range of stable ABIs.

    `==2.11.0` admits builds of that release under other local versions, as PEP 440 has it; `==2.7.0a0+nv25.02` only
    that build; `===` is for versions that PEP 440 does not know. `stable_since`: the first torch that has all that a
    wheel of the stable ABI uses.
    """
    if stable_since:
        return f">={stable_since},<{STABLE_UNTIL}"
    try:
        Version(version)
    except InvalidVersion:
        return f"==={version}"
    return f"=={version}"
