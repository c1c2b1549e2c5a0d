"""Everything before the model: read, filter, split, tokenize. No torch, one file aside."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from dataset.tokenizers.rank import RankConfig
from dataset.tokenizers.tokenizer import Tokenizer

# The tokenizers. A second one turns this into a union discriminated on `kind`.
TokenizerConfig = RankConfig


def read_tokenizer(settings: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that these settings, of a ``meta.json``, describe."""
    return TypeAdapter(TokenizerConfig).validate_python(settings)
