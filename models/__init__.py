"""Everything with weights, and the baselines: the union that a config chooses from."""

from models.rank_transformer import RankTransformerConfig

# The models. A second one turns this into a union discriminated on `kind`.
ModelConfig = RankTransformerConfig
