"""Settings of the second segment: the profile of a cell at the time point before."""

from pydantic import Field

from configs.base import Config


class PreviousConfig(Config):
    """Source of a cell's profile at the time point before.

    Either a layer of the file holds it, or it is computed from ``time_key`` of the preprocess
    config by optimal transport (``dataset/previous/history.py``).
    """

    layer: str | None = Field(
        default=None, description="layer with the previous profile; null: computed from time_key"
    )
    n_ancestors: int = Field(default=10, ge=1, description="cells summed into one profile")
    n_components: int = Field(default=30, ge=1, description="principal components compared")
    regularization: float = Field(
        default=0.05, gt=0, description="entropy of the transport, in units of the median cost"
    )
    max_cells: int = Field(
        default=2000, ge=2, description="train cells of a time point that the transport is fit on"
    )
    shuffle: bool = Field(
        default=False, description="control: histories permuted within split and time point"
    )
    seed: int = Field(default=0, ge=0, description="of the subsample and of the shuffle")
