"""Everything before the model: read, filter, split, tokenize. No torch, one file aside."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from dataset.tokenizers.gene_values import GeneValuesConfig
from dataset.tokenizers.rank import RankConfig
from dataset.tokenizers.tokenizer import Tokenizer

# The tokenizers.
TokenizerConfig = Annotated[RankConfig | GeneValuesConfig, Field(discriminator="kind")]


def read_tokenizer(settings: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that these settings, of a ``meta.json``, describe."""
    return TypeAdapter[Tokenizer](TokenizerConfig).validate_python(settings)
