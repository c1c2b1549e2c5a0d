"""What an interval allows to be said, and no more."""

import numpy as np
import pytest

from evaluation.outcome import outcome


def word(low, high, *, margin=0.02, n_cells=1000, resolution=0.003, **how):
    return outcome(low, high, margin=margin, n_cells=n_cells, resolution=resolution, **how).word


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.05, "better"),
        (-0.05, -0.01, "worse"),
        (0.001, 0.003, "better"),
        (-0.01, 0.015, "level"),
        (-0.02, 0.02, "level"),
        (-0.01, 0.021, "cannot tell"),
        (-0.021, 0.01, "cannot tell"),
        (0.0, 0.1, "cannot tell"),
        (-0.1, 0.0, "cannot tell"),
        (0.0, 0.0, "level"),
        (np.nan, np.nan, "cannot tell"),
    ],
)
def test_words(low, high, expected):
    assert word(low, high) == expected


def test_lower_may_be_better():
    assert word(-0.05, -0.01, lower_is_better=True) == "better"
    assert word(0.01, 0.05, lower_is_better=True) == "worse"
    assert word(-0.01, 0.01, lower_is_better=True) == "level"


def test_margin_is_the_callers():
    assert word(-0.03, 0.03, margin=0.05) == "level"
    assert word(-0.03, 0.03, margin=0.01) == "cannot tell"


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (-0.2, -0.1), (0.0, 0.0)])
def test_a_handful_of_cells_says_nothing(low, high):
    found = outcome(low, high, margin=0.02, n_cells=7, resolution=0.0)
    assert found.word == "cannot tell"
    assert found.reason == "7 test cells are too few (fewest: 30)"


def test_cells_that_all_agree_do_not_make_level():
    """No difference among 40 cells: there may still be one in 13 of them."""
    assert word(0.0, 0.0, n_cells=40, resolution=3 / 40) == "cannot tell"
    assert word(0.0, 0.0, n_cells=400, resolution=3 / 400) == "level"


def test_only_cannot_tell_has_a_reason():
    for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.01, 0.01)):
        assert outcome(low, high, margin=0.02, n_cells=500, resolution=0.01).reason == ""
    assert "margin of 0.02" in outcome(-1, 1, margin=0.02, n_cells=500, resolution=0).reason
