"""Everything before the model: read, filter, split, tokenise. No torch, one file aside."""

from dataset.tokenizers.rank import RankConfig

# The tokenisers. A second one turns this into a union discriminated on `kind`.
TokenizerConfig = RankConfig
