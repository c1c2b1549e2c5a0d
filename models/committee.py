"""A committee: the mean of the probabilities of runs that are finished, its members.

Models that err on different cells are better together than each of them. Members' probabilities
enter at the temperatures that are stored in their runs: a member that is far too sure, or not
nearly sure enough, would else be heard too much or not at all. The mean has a temperature of its
own, as every run has.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy.optimize import minimize

from configs.base import Config


class CommitteeConfig(Config):
    """Runs of other models on the same cells, whose predictions are averaged."""

    role: ClassVar[str] = "committee"
    kind: Literal["committee"] = "committee"
    members: list[str] = Field(
        min_length=2,
        description="run folders of the same cells, split and classes, such as runs/a; the "
        "embedding in 04 is that of the first network among them",
    )
    members_sha256: list[str | None] | None = Field(
        default=None, description="checksums of their weights; filled in when the run starts"
    )
    weights: Literal["equal", "by_kind", "val"] = Field(
        default="equal",
        description="by_kind: every kind of model weighs the same, and its runs (its seeds) share "
        "that; val: each member's weight is chosen on val, by log-loss; val cells that are few "
        "choose badly",
    )

    @field_validator("members")
    @classmethod
    def _are_different(cls, members: list[str]) -> list[str]:
        if twice := sorted({member for member in members if members.count(member) > 1}):
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return members

    @model_validator(mode="after")
    def _have_a_checksum_each(self) -> "CommitteeConfig":
        if self.members_sha256 is not None and len(self.members_sha256) != len(self.members):
            raise ValueError("members_sha256: expected one for each member, or null")
        return self

    def fit(
        self, labels: NDArray[np.int64], members: Sequence[NDArray], kinds: Sequence[str]
    ) -> NDArray[np.float64]:
        """Return the weight of each member, the sum of all is 1.

        Parameters
        ----------
        labels
            Classes of the val cells, ``(n,)``.
        members
            Each member's probabilities of them, ``(n, c)``.
        kinds
            What kind of model each member is, the ``kind`` of its config.
        """
        equal = np.full(len(members), 1 / len(members))
        if self.weights == "equal":
            return equal
        if self.weights == "by_kind":
            alike = np.array([kinds.count(kind) for kind in kinds])
            return 1 / (alike * len(set(kinds)))
        cells = np.arange(len(labels))
        own = np.column_stack([p[cells, labels] for p in members])
        own = np.clip(own, 1e-12, None, dtype=np.float64)  # (n, members)

        def loss(weights: NDArray) -> tuple[float, NDArray]:
            mixed = own @ weights
            return -float(np.log(mixed).mean()), -(own / mixed[:, None]).mean(axis=0)

        sum_is_1 = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
        bounds = [(1e-9, 1.0)] * len(members)  # a mixture is never 0
        found = minimize(
            loss, equal, jac=True, bounds=bounds, constraints=[sum_is_1], method="SLSQP"
        )
        weights = np.where(found.x < 1e-6, 0.0, found.x)
        return weights / weights.sum()

    def average(self, weights: NDArray, members: Sequence[NDArray]) -> NDArray[np.float64]:
        """Return the weighted mean of the members' probabilities, ``(n, c)`` each."""
        return np.einsum("m,mnc->nc", weights, np.asarray(members, dtype=np.float64))
