"""The words of a recipe that are more than text: versions, relative paths, tags, archs, each checked as it is read."""

from __future__ import annotations

from typing import Annotated, Any

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BeforeValidator, Field

from scripts.core.errors import UsageError
from scripts.cuda.archs import Arch, parse_arch, parse_arch_list


def _version(text: str) -> str:
    try:
        Version(text)
    except InvalidVersion as error:
        raise ValueError("not a version (PEP 440), such as 0.20.1") from error
    return text


def _relative(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("not a relative path without '..'")
    return text


def _tag(text: str) -> str:
    parts = text.split("/")
    if text and (".." in text or not all(parts) or any(part.startswith((".", "-")) for part in parts)):
        raise ValueError("not the name of a git tag, such as v0.20.1")
    return text


def _arch(value: Any) -> Any:
    if isinstance(value, Arch):
        return value
    if not isinstance(value, str):
        raise ValueError('an arch is a string such as "9.0"')  # noqa: TRY004  (pydantic collects ValueErrors)
    try:
        return parse_arch(value)
    except UsageError as error:
        raise ValueError(f"{error.what} {' '.join(error.fix)}") from error


def _arch_list(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value or ()
    try:
        return parse_arch_list(value)
    except UsageError as error:
        raise ValueError(f"{error.what} {' '.join(error.fix)}") from error


FROM_TREE = "tree"  # the pin of a submodule that the pinned commit's own tree names
SubmodulePin = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|tree)$")]
VersionText = Annotated[str, AfterValidator(_version)]
CudaVersion = Annotated[str, Field(pattern=r"^\d{2}\.\d$", description="CUDA toolkit as MAJOR.MINOR, such as 12.8")]
EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
RelativePath = Annotated[str, Field(pattern=r"^[\w.+/-]+$"), AfterValidator(_relative)]
ArchText = Annotated[
    Arch, BeforeValidator(_arch, json_schema_input_type=str), Field(json_schema_extra={"examples": ["9.0"]})
]
ArchListText = Annotated[
    tuple[Arch, ...],
    BeforeValidator(_arch_list, json_schema_input_type=str),
    Field(json_schema_extra={"examples": ["8.0+PTX;9.0a"]}),
]
TagText = Annotated[str, Field(pattern=r"^[\w.+/@-]*$"), AfterValidator(_tag)]
