"""Which wheels of another index a word means: `NAME.whl` or `vllm==0.15.1`; and what is there when it means none."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from scripts.core.errors import UsageError, a_few, nearest, nearest_of
from scripts.downloads.indexes import redacted
from scripts.index.entry import same_wheel
from scripts.index.reader import Listed, SimpleClient

_MANY = 2000  # projects: of more, only those that begin alike are compared with a name


def matching(client: SimpleClient, text: str, index: str) -> list[Listed]:
    """Return the wheels that a file name or a pinned version means.

    Raises UsageError when there is none: it names the versions that are there, or the project that may be meant.
    """
    try:
        if text.endswith(".whl"):
            project, version = parse_wheel_filename(text)[:2]
            pinned: Version | None = version
        else:
            name, _, number = text.partition("==")
            project, pinned = canonicalize_name(name.strip(), validate=True), Version(number) if number else None
    except (InvalidWheelFilename, ValueError) as error:
        raise UsageError(f"{text!r} names no wheel", why=str(error), fix="NAME.whl, or vllm==0.15.1") from error
    files = client.files(project)
    if text.endswith(".whl"):
        found = [item for name, item in files.items() if same_wheel(name, text)]
    else:
        found = [item for item in files.values() if pinned and _version(item.name) == pinned]
    if found:
        return found
    raise _missing(client, text, redacted(index), project, pinned, files)


def _missing(
    client: SimpleClient, text: str, index: str, project: str, pinned: Version | None, files: Iterable[str]
) -> UsageError:
    wheels = {name: version for name in files if (version := _version(name))}
    if not wheels:
        return _no_wheels(client, index, project, files)
    if text.endswith(".whl") and pinned in wheels.values():
        same = [name for name, version in wheels.items() if version == pinned]
        return UsageError(f"{index} has no {text}", why=f"of this version it has {a_few(same)}", fix="name one of them")
    versions = sorted(set(wheels.values()), reverse=True)
    # What was meant may differ by its label only: those come first.
    alike = [version for version in versions if pinned and version.public == pinned.public]
    listed = a_few([str(version) for version in (*alike, *(one for one in versions if one not in alike))])
    what = f"{index} has no wheel of {project} {pinned}" if pinned else f"{text!r} names no version"
    wanted = f"{project}=={alike[0] if alike else versions[0]}"
    return UsageError(what, why=f"it has {listed}", fix=f"name one that is there, label and all, as in {wanted}")


def _no_wheels(client: SimpleClient, index: str, project: str, files: Iterable[str]) -> UsageError:
    if sources := sorted(files):
        return UsageError(f"{index} has no wheel of {project}", why=f"only sources: {a_few(sources)}", fix="build it")
    projects = client.projects()
    if len(projects) > _MANY:
        projects = [name for name in projects if name[:2] == project[:2]]
    near = nearest_of(project, projects)
    return UsageError(
        f"{index} has no project {project}.{nearest(project, projects)}",
        why=f"its projects are {a_few(sorted(projects))}" if projects and not near else "",
        fix="look at the list of projects there, and whether this is the index that you mean",
    )


def _version(filename: str) -> Version | None:
    try:
        return parse_wheel_filename(filename)[1]
    except (InvalidWheelFilename, InvalidVersion, ValueError):
        return None
