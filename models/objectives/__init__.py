"""The objectives of a network: the union that a config chooses from."""

from typing import Annotated

from pydantic import Field

from models.objectives.cell_value import CellValueConfig
from models.objectives.classify import ClassifyConfig
from models.objectives.condition_adversary import ConditionAdversaryConfig
from models.objectives.elastic_similarity import ElasticSimilarityConfig
from models.objectives.generate_values import GenerateValuesConfig
from models.objectives.masked_counts import MaskedCountsConfig
from models.objectives.masked_gene import MaskedGeneConfig
from models.objectives.masked_value import MaskedValueConfig
from models.objectives.neighbors import NeighborsConfig
from models.objectives.whole_cell import WholeCellConfig

ObjectiveConfig = Annotated[
    ClassifyConfig
    | NeighborsConfig
    | MaskedGeneConfig
    | WholeCellConfig
    | MaskedCountsConfig
    | MaskedValueConfig
    | CellValueConfig
    | GenerateValuesConfig
    | ElasticSimilarityConfig
    | ConditionAdversaryConfig,
    Field(discriminator="kind"),
]


def default_objectives() -> list[ObjectiveConfig]:
    """Predict cell types, and nothing else."""
    return [ClassifyConfig()]
