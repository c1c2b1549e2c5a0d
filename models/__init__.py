"""Everything with weights, and the baselines: the union that a config chooses from."""

from typing import Annotated

from pydantic import Field

from models.baselines.gradient_boosting import GradientBoostingConfig
from models.baselines.knn import KNNConfig
from models.baselines.linear_svm import LinearSVMConfig
from models.baselines.logistic_regression import LogisticRegressionConfig
from models.baselines.majority import MajorityConfig
from models.committee import CommitteeConfig
from models.rank_transformer import RankTransformerConfig
from models.residual_mlp import ResidualMLPConfig
from models.value_transformer import ValueTransformerConfig

ModelConfig = Annotated[
    RankTransformerConfig
    | ResidualMLPConfig
    | ValueTransformerConfig
    | MajorityConfig
    | LogisticRegressionConfig
    | LinearSVMConfig
    | KNNConfig
    | GradientBoostingConfig
    | CommitteeConfig,
    Field(discriminator="kind"),
]
