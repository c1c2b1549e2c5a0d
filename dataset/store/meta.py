"""The types of what meta.json of an encoded folder holds."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from dataset.store.layout import check_array_names


def _array_name(name: str) -> str:
    check_array_names([name])
    return name


def _dtype_name(name: str) -> str:
    if name not in ("bool", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"):
        raise ValueError(f"{name!r} is no type of an array")
    return name


DtypeName = Annotated[str, AfterValidator(_dtype_name)]
ArrayName = Annotated[str, AfterValidator(_array_name)]


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


class _Learned(_Exact):
    dtype: DtypeName
    shape: list[NonNegativeInt]
    range: list[float]


class Fold(_Exact):
    """Which fold of a data set its test split is; ``sha256`` is of all that its folds share."""

    name: str
    of: list[str]
    sha256: str


class _Meta(_Exact):
    name: str
    fold: Fold | None = None
    source: _Source
    label_key: str | None
    batch_key: str | None
    time_key: str | None
    condition_keys: list[str]
    position_keys: list[str]
    organism: str | None
    quality_control: dict[str, Any]
    min_detected_genes: NonNegativeInt
    tokenizer: dict[str, Any]
    learned: dict[ArrayName, _Learned]
    arrays: dict[ArrayName, DtypeName]
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
