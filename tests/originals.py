"""Single files of the original packages, where these are installed, and our weights in theirs."""

import importlib
import logging
import sys
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import pytest
import torch
from torch import nn

# Packages whose __init__ imports what no longer installs: bare, but for what is taken of them
WITHOUT_INIT = {
    "scgpt": {"scgpt": {"logger": logging.getLogger("scgpt")}, "scgpt.model": {}},
    "cellplm": {},
}


@cache
def original(package: str, module: str) -> ModuleType:
    """Return a module of a package; skip the test where it is not installed or not importable."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r tests/originals.txt")
    for name, contents in WITHOUT_INIT[package].items():
        bare = ModuleType(name)
        bare.__path__ = [str(installed.locate_file(name.replace(".", "/")))]
        vars(bare).update(contents)
        sys.modules[name] = bare
    try:
        with warnings.catch_warnings(action="ignore"):  # scGPT's, that there is no flash_attn
            return importlib.import_module(module)
    except ImportError as error:  # of a package that it needs and that is not there, or is newer
        pytest.skip(f"{package} cannot be imported here: {error}")
    finally:
        for name in WITHOUT_INIT[package]:
            del sys.modules[name]


def same_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Give theirs the weights of ours, of which it has as many, in the same order."""
    given = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), given, strict=True)))


def same_linear(theirs: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give theirs these weights."""
    theirs.load_state_dict({"weight": weight, "bias": bias})
