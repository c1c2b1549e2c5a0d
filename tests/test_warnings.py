"""Which warnings fail a test: those that we can mend."""

import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ["benchmarks", "configs", "dataset", "evaluation", "models", "tests", "training"]


def warn(category, module):
    warnings.warn_explicit("planted", category, f"{module}.py", 1, module=module, registry={})


@pytest.mark.parametrize("package", [*OURS, "train_model"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, UserWarning])
def test_a_warning_to_our_code_fails_the_test(package, category):
    with pytest.raises(category, match="planted"):
        warn(category, f"{package}.module" if package != "train_model" else package)


def test_what_a_library_will_change_about_itself_does_not():
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        with pytest.warns(category, match="planted"):
            warn(category, "scanpy.models")


def test_any_other_warning_of_a_library_does():
    with pytest.raises(RuntimeWarning, match="planted"):
        warn(RuntimeWarning, "numpy._core.fromnumeric")
