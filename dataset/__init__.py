"""Everything before the model: read, filter, split, tokenize. No torch, one file aside."""

from dataset.tokenizers.rank import RankConfig

# The tokenizers. A second one turns this into a union discriminated on `kind`.
TokenizerConfig = RankConfig
