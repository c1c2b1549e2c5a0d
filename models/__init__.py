"""Everything with weights, baselines and comparators: the union that a config chooses from."""

from typing import Annotated

from pydantic import Field

from models.baselines.gradient_boosting import GradientBoostingConfig
from models.baselines.knn import KNNConfig
from models.baselines.linear_svm import LinearSVMConfig
from models.baselines.logistic_regression import LogisticRegressionConfig
from models.baselines.majority import MajorityConfig
from models.cellplm import CellPLMConfig
from models.committee import CommitteeConfig
from models.comparators.celltypist import CellTypistConfig
from models.comparators.lightgbm import LightGBMConfig
from models.comparators.scanvi import ScANVIConfig
from models.comparators.singler import SingleRConfig
from models.rank_transformer import RankTransformerConfig
from models.residual_mlp import ResidualMLPConfig
from models.value_transformer import ValueTransformerConfig

ModelConfig = Annotated[
    RankTransformerConfig
    | ResidualMLPConfig
    | CellPLMConfig
    | ValueTransformerConfig
    | MajorityConfig
    | LogisticRegressionConfig
    | LinearSVMConfig
    | KNNConfig
    | GradientBoostingConfig
    | CellTypistConfig
    | LightGBMConfig
    | SingleRConfig
    | ScANVIConfig
    | CommitteeConfig,
    Field(discriminator="kind"),
]
