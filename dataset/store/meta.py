"""What meta.json of an encoded folder holds, by type."""

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError


class _Exact(BaseModel):
    """Refuses ``"3"`` for 3; keys that are not listed are not looked at."""

    model_config = ConfigDict(strict=True, extra="allow")


class _File(_Exact):
    path: str
    sha256: str
    n_cells: NonNegativeInt


class _Source(_Exact):
    files: list[_File]
    counts: str
    found: str
    n_cells: NonNegativeInt
    n_genes: NonNegativeInt


class _SplitSizes(_Exact):
    train: NonNegativeInt
    val: NonNegativeInt
    test: NonNegativeInt


class _Meta(_Exact):
    name: str
    source: _Source
    label_key: str
    batch_key: str | None
    time_key: str | None
    organism: str | None
    quality_control: dict[str, Any]
    min_detected_genes: NonNegativeInt
    tokenizer: dict[str, Any]
    n_tokens: PositiveInt
    n_segments: PositiveInt
    n_cells: _SplitSizes
    dropped: dict[str, int]
    messages: list[str]
    data_sha256: str
    split_sha256: str
    git_commit: str | None


def fault_of_meta(meta: dict[str, Any]) -> str | None:
    """Say what is not as it should be in the content of meta.json, if anything is."""
    try:
        _Meta.model_validate(meta)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None
