"""Everything before the model: reading, filtering, splitting, tokenising. No torch, one file aside."""

from dataset.tokenizers.rank import RankConfig

# The tokenisers. A second one turns this into a union discriminated on `kind`.
TokenizerConfig = RankConfig
