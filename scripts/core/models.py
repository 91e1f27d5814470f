"""The base of all typed data that is read from files, and the words for digests in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the file, 64 lower-case hex digits")]
CommitSha = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="full git commit id, 40 hex digits")]


class Model(BaseModel):
    """Base: frozen, no unknown keys, attribute docstrings become the schema's descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, defer_build=True
    )
