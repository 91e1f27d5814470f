"""The image's software bill of materials: CycloneDX 1.6 with licences and hashes, the same bytes for the same image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from scripts.image.checks import Installed
from scripts.image.report import ImageReport

_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
}
"""Trove classifiers that mean exactly one SPDX licence; "BSD License" does not."""
_SPELLINGS = {
    "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0", "bsd 3-clause": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "mit license": "MIT", "mpl 2.0": "MPL-2.0", "bsd-3": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "expat": "MIT", "gpl-2+": "GPL-2.0-or-later", "gpl-3+": "GPL-3.0-or-later", "gpl-2": "GPL-2.0-only",
    "gpl-3": "GPL-3.0-only", "lgpl-2.1+": "LGPL-2.1-or-later", "lgpl-2+": "LGPL-2.0-or-later",
    "lgpl-2.1": "LGPL-2.1-only", "lgpl-3+": "LGPL-3.0-or-later", "zlib": "Zlib", "artistic": "Artistic-1.0-Perl",
}  # fmt: skip
"""Spellings of packages and of Debian's copyright files, in small letters."""


def spdx(said: str) -> str:
    """Return the SPDX expression that a package's word for its licence means; "" when it means none for certain."""
    word = said.rsplit(" :: ", 1)[-1].strip() if said.startswith("License ::") else said.strip()
    if said.startswith("License ::"):
        return _CLASSIFIERS.get(word, "")
    word = _SPELLINGS.get(word.lower(), word)
    try:
        return str(canonicalize_license_expression(word))
    except InvalidLicenseExpression:
        return ""


def licences(package: Installed) -> tuple[list[str], list[str]]:
    """Return a package's licences: SPDX expressions, and what else it says. Its first clear word counts alone."""
    if package.architecture:  # Debian: each name stands for some of the files
        known = {word: spdx(word) for word in package.licences}
        return sorted({item for item in known.values() if item}), sorted(word for word in known if not known[word])
    clear = next((item for word in package.licences if (item := spdx(word))), "")
    if clear:
        return [clear], []
    nvidia = package.name.lower().startswith(("nvidia-", "cuda-"))
    words = [word.rsplit(" :: ", 1)[-1] for word in package.licences]
    return (["LicenseRef-NVIDIA-Proprietary"] if nvidia else []), [] if nvidia else words[:1]


def licence_label(report: ImageReport) -> str:
    """Return the licences of all Python packages as one SPDX expression; Debian's are in their copyright files."""
    found: set[str] = set()
    for package in report.facts.python_packages:
        known, other = licences(package)
        found.update(f"({item})" if " OR " in item else item for item in known)
        if other or not known:
            found.add("LicenseRef-see-SBOM")
    if report.facts.debian_packages:
        found.add("LicenseRef-Debian-copyright-files")
    return " AND ".join(sorted({part for item in found for part in ([item] if "(" in item else item.split(" AND "))}))


def image_sbom(report: ImageReport, *, hashes: Mapping[str, Sequence[str]], distribution: str = "debian") -> str:
    """Return the SBOM as JSON, with syft's names for what is what.

    `hashes` are the sha256 that the lock allows for a Python package's files, by normal name. Serial number and time
    come from the image's contents.
    """
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"{report.tag}#{report.wheel.sha256}#{report.total}"))
    bom.metadata.timestamp = datetime.fromtimestamp(report.timestamp, tz=timezone.utc)
    bom.metadata.component = Component(name=report.tag, type=ComponentType.CONTAINER, bom_ref=report.tag)
    for package in report.facts.python_packages:
        name = str(canonicalize_name(package.name))
        url = PackageURL("pypi", name=name, version=package.version)
        component = _component(package, url, "python")
        component.external_references.update(_distributions(name, hashes.get(name, ())))
        if name == "vllm":
            component.external_references.update(_distributions(name, [report.wheel.sha256]))
        bom.components.add(component)
    for package in report.facts.debian_packages:
        url = PackageURL("deb", distribution, package.name, package.version, {"arch": package.architecture})
        bom.components.add(_component(package, url, "deb"))
    bom.register_dependency(bom.metadata.component, bom.components)
    return json.dumps(json.loads(JsonV1Dot6(bom).output_as_string()), indent=2) + "\n"


def _distributions(name: str, digests: Sequence[str]) -> list[ExternalReference]:
    """Return the files of an index that may have been installed: the lock allows these and no others."""
    if not digests:
        return []
    return [
        ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(f"pkg:pypi/{name}"),
            comment="files that the lock allows, by sha256",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=item) for item in digests],
        )
    ]


def _component(package: Installed, url: PackageURL, kind: str) -> Component:
    made = Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=url,
        bom_ref=str(url),
        properties=[Property(name="syft:package:type", value=kind)],
    )
    known, other = licences(package)
    if len(known) == 1 and not other:
        made.licenses.add(LicenseExpression(known[0]))
    else:
        made.licenses.update(DisjunctiveLicense(name=item) for item in (*known, *other) if item)
    if package.sha256:
        made.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=package.sha256))
        made.properties.add(
            Property(name="wheelsmith:sha256-of", value="RECORD" if kind == "python" else "package file")
        )
    return made
