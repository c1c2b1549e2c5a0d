"""Objectives of values and normalization by batch, against scGPT with the same weights."""

import pytest
import torch

from dataset.vocabulary import N_SPECIALS
from models.domain_batch_norm import EPS, MOMENTUM, DomainBatchNorm
from models.network import Encoded
from models.objectives.base import Bank
from models.objectives.cell_value import CellValueConfig
from models.objectives.condition_adversary import ConditionAdversaryConfig
from models.objectives.elastic_similarity import ElasticSimilarityConfig
from models.objectives.masked_value import MaskedValueConfig
from tests.made_up import facts, learner
from tests.originals import original, same_weights
from tests.value_cells import CONFIG, N_GENES, SIZES

D = CONFIG.d_model


def head_of(objective):
    torch.manual_seed(0)
    return learner(CONFIG, [objective], **SIZES).heads[objective.kind]


def two_of(*shape):
    """Return the same numbers twice, each with a gradient of its own."""
    x = torch.randn(*shape)
    return x.clone().requires_grad_(), x.requires_grad_()


def test_the_value_of_a_hidden_token_is_that_of_the_expression_decoder():
    scgpt = original("scgpt", "scgpt.model.model")
    ours, theirs = head_of(MaskedValueConfig()), scgpt.ExprDecoder(D)
    same_weights(theirs, ours)
    states = torch.randn(7, D)
    torch.testing.assert_close(ours(states), theirs(states[None])["pred"][0])


def test_the_value_by_a_cell_is_that_of_the_mvc_decoder_over_the_root_of_the_width():
    scgpt = original("scgpt", "scgpt.model.model")
    ours, theirs = head_of(CellValueConfig()), scgpt.MVCDecoder(D)
    same_weights(theirs, ours)
    genes, cells = torch.arange(N_SPECIALS, N_SPECIALS + N_GENES), torch.randn(5, D)
    embeddings = ours.tied[0].token_embedding[genes].expand(5, N_GENES, D)
    expected = theirs(cells, embeddings)["pred"] / D**0.5
    found = ours(genes.repeat(5), cells.repeat_interleave(N_GENES, dim=0))
    torch.testing.assert_close(found.view(5, N_GENES), expected)


def test_the_adversary_is_the_discriminator_and_reverses_the_same_gradient():
    scgpt = original("scgpt", "scgpt.model.model")
    ours = head_of(ConditionAdversaryConfig(condition="batch"))
    theirs = scgpt.AdversarialDiscriminator(D, n_cls=2, reverse_grad=True)
    same_weights(theirs, ours)
    x, y = two_of(9, D)
    weights = torch.randn(9, 2)
    found, expected = ours(x), theirs(y)
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_batches_of_one_domain_are_normalized_as_by_scgpts():
    """Its model has another eps, 6.1e-5; its running statistics start as those of one batch."""
    dsbn = original("scgpt", "scgpt.model.dsbn")
    torch.manual_seed(0)
    ours = DomainBatchNorm(3, D)
    theirs = dsbn.DomainSpecificBatchNorm1d(D, 3, eps=EPS, momentum=None, affine=False)
    is_counted = torch.ones(40, dtype=torch.bool)
    for step in range(45):
        if step == 30:  # ten batches of each
            for norm in theirs.bns:
                norm.momentum = MOMENTUM
        code = step % 3
        x = code + (1 + code) * torch.randn(8, 5, D)  # cells, genes
        expected = theirs(x.transpose(1, 2), code).transpose(1, 2)
        found = ours(x.flatten(0, 1), torch.full((40,), code), is_counted)
        torch.testing.assert_close(found.view_as(x), expected, atol=1e-5, rtol=1e-5)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(norm, name) for norm in theirs.bns])
        torch.testing.assert_close(getattr(ours, name)[1:], expected)
    ours.eval(), theirs.eval()
    expected = theirs(x.transpose(1, 2), 1).transpose(1, 2)
    found = ours(x.flatten(0, 1), torch.full((40,), 1), is_counted)
    torch.testing.assert_close(found.view_as(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_similarities_in_a_batch_are_scgpts_for_which_a_cell_is_unlike_itself(
    threshold, monkeypatch
):
    scgpt = original("scgpt", "scgpt.model.model")
    torch.manual_seed(0)
    x, cells = torch.randn(6, D), torch.arange(6)
    x[1] = x[0] + 0.5 * x[1]
    model = scgpt.TransformerModel(
        20, D, nhead=2, d_hid=D, nlayers=1, vocab={"<pad>": 0}, ecs_threshold=threshold
    )
    monkeypatch.setattr(model, "_get_cell_emb_from_layer", lambda *_: x)
    nothing = torch.zeros(6, 4, dtype=torch.bool)
    theirs = model(nothing.long(), nothing.float(), nothing, ECS=True)["loss_ecs"]

    objective = ElasticSimilarityConfig(threshold=threshold)
    head = objective.head(None, 0.0, facts())
    objective.remember(head, Bank(x, torch.zeros(6), cells))
    losses = objective.loss(Encoded(x), head, {"cell_index": cells})
    of_itself = 1 - threshold**2
    torch.testing.assert_close((5 * losses.mean() + of_itself) / 6, theirs)
