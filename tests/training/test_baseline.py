"""What is done around the fit of a baseline."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from models.baselines.majority import MajorityConfig
from training import baseline


def test_packages_are_imported_before_the_clock_runs(monkeypatch):
    """A comparator's fit would import them, and its seconds hold that."""
    done = []

    class Comparator(MajorityConfig):
        modules: ClassVar = ("first", "second")

        def fit(self, *cells, **settings):
            done.append("fit")
            return super().fit(*cells, **settings)

    monkeypatch.setattr(baseline, "package", done.append)
    cells = csr_matrix((2, 1), dtype=np.float32), np.ones(2)
    data = SimpleNamespace(
        class_names=["type"],
        expression=lambda split: cells,
        split=lambda split: SimpleNamespace(labels=np.zeros(2, dtype=np.int64)),
    )
    config = SimpleNamespace(model=Comparator(), is_transductive=False, seed=0, test=False)
    fitted = baseline.fit_baseline(config, data)
    assert done == ["first", "second", "fit"]
    assert fitted.val["probabilities"].tolist() == [[1], [1]]
