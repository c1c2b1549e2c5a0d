"""Hide the values of some genes and guess them from the rest of the cell."""

from typing import ClassVar, Literal

import torch
from torch import nn

from dataset.batches import cell_of_token
from models.objectives.base import Objective


class ToyObjectiveConfig(Objective):
    kind: Literal["toy_objective"] = "toy_objective"
    reads_tokens: ClassVar[bool] = True
    hides: ClassVar[bool] = True

    def head(self, network, dropout, facts):
        return nn.Linear(network.d_model, 1)

    def hide(self, batch, draw, facts):
        is_hidden = (batch["counts"] > 0) & (draw(0) < 0.3)
        values = torch.where(is_hidden, 0, batch["values"])
        return {**batch, "values": values, "toy_target": batch["values"], "toy_hidden": is_hidden}

    def loss(self, encoded, head, batch):
        errors = (head(encoded.token_states)[:, 0].float() - batch["toy_target"]).square()
        errors = errors * batch["toy_hidden"]
        return errors.new_zeros(len(batch["labels"])).index_add(0, cell_of_token(batch), errors)

    def predict(self, encoded, head, batch):
        return {"toy_error": self.loss(encoded, head, batch)}

    def score(self, predictions, labels):
        return {"toy_loss": float(predictions["toy_error"].mean())}
