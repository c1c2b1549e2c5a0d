"""What a network is trained to do: the union that a config chooses from."""

from models.objectives.classify import ClassifyConfig

# The objectives. A second one turns this into a union discriminated on `kind`.
ObjectiveConfig = ClassifyConfig
