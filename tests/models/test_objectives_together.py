"""Objectives beside each other, and cells or networks that they cannot be trained on."""

from itertools import permutations

import numpy as np
import pytest
import torch

from configs.base import ConfigError
from dataset.vocabulary import MASK, N_SPECIALS
from models.network import Encoded
from models.objectives.base import N_STREAMS, mean_of_cells, streams_of, with_original
from models.objectives.cell_value import CellValueConfig
from models.objectives.hidden_values import TARGET as VALUES
from models.objectives.masked_counts import TARGET as COUNTS
from models.objectives.masked_counts import MaskedCountsConfig
from models.objectives.masked_gene import TARGET as GENES
from models.objectives.masked_gene import MaskedGeneConfig
from models.objectives.masked_value import MaskedValueConfig
from models.objectives.whole_cell import WholeCellConfig
from models.rank_transformer import RankTransformerConfig
from models.residual_mlp import ResidualMLPConfig
from tests.made_up import learner
from tests.value_cells import CONFIG, N_GENES, SIZES, pairs
from training.counter_random import draw_for

RANKED = SIZES | {"tokenizer": {"kind": "rank"}}
NETWORKS = {
    "values": (CONFIG.model_copy(update={"cls_init": "expression"}), SIZES),
    "ranks": (RankTransformerConfig(d_model=16, n_heads=2, value_embedding="mlp"), RANKED),
    "sums": (ResidualMLPConfig(d_model=16), RANKED),
}
HIDING = (
    MaskedGeneConfig(masked_fraction=0.5, random_fraction=0.2),
    WholeCellConfig(),
    MaskedCountsConfig(hidden_fraction=0.4),
    MaskedValueConfig(),
    CellValueConfig(),
)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", [MaskedCountsConfig(), WholeCellConfig()])
def test_no_network_is_shown_a_hidden_gene_nor_its_value(rng, network, objective):
    config, sizes = NETWORKS[network]
    model = learner(config, [objective], **sizes).eval()
    batch = pairs(rng, 20)
    hidden = model.hide(batch, draw_for(batch, 1))
    is_hidden = hidden["token_ids"] == MASK
    assert is_hidden.any()
    another = N_SPECIALS + (batch["token_ids"] - N_SPECIALS + 1) % N_GENES
    other = batch | {
        "token_ids": torch.where(is_hidden, another, batch["token_ids"]),
        "values": torch.where(is_hidden, 11 - batch["values"], batch["values"]),
    }
    other = model.hide(other, draw_for(batch, 1))
    with torch.no_grad():
        a, b = (model.network(cells, tokens=True) for cells in (hidden, other))
    assert torch.equal(a.cell_embedding, b.cell_embedding)
    assert torch.equal(a.token_states, b.token_states)


def test_no_objective_changes_the_target_of_another(rng):
    """Beside another, before or after it, each has the loss that it has alone."""
    torch.manual_seed(0)
    batch = pairs(rng, 30)
    draw, n_tokens = draw_for(batch, 7), len(batch["token_ids"])
    encoded = Encoded(torch.randn(30, 16), torch.randn(n_tokens, 16))
    for both in permutations(HIDING, 2):
        if {o.kind for o in both} == {"masked_value", "cell_value"}:
            continue  # they hide the same values
        model = learner(CONFIG, list(both), **SIZES).eval()
        together = model.hide(batch, draw)
        for i, objective in enumerate(both):
            alone = objective.hide(with_original(batch), streams_of(draw, i), model.facts)
            head, kinds = model.heads[objective.kind], [o.kind for o in both]
            expected = objective.loss(encoded, head, alone)
            found = objective.loss(encoded, head, together)
            assert torch.equal(found, expected), (objective.kind, kinds)


def test_what_two_objectives_hide_is_independent_and_alone_it_is_as_ever(rng):
    batch = pairs(rng, 2000)
    first, second = MaskedGeneConfig(masked_fraction=0.5), MaskedCountsConfig(hidden_fraction=0.5)
    hidden = learner(CONFIG, [first, second], **SIZES).hide(batch, draw_for(batch, 3))
    is_gene = batch["token_ids"] >= N_SPECIALS
    in_both = (hidden[GENES] >= 0) & (hidden[COUNTS] >= 0)
    assert in_both.sum() / is_gene.sum() == pytest.approx(0.25, abs=0.02)
    alone = learner(CONFIG, [second], **SIZES).hide(batch, draw_for(batch, 3))
    assert torch.equal(alone[COUNTS] >= 0, is_gene & (draw_for(batch, 3)(0) < 0.5))
    assert streams_of(lambda stream: stream, 2)(1) == 2 * N_STREAMS + 1


@pytest.mark.parametrize("objective", [MaskedCountsConfig(), WholeCellConfig()])
def test_genes_that_are_never_tokens_are_not_taken_for_absent(objective):
    is_variable = np.ones(N_GENES, dtype=bool)
    learner(CONFIG, [objective], **SIZES, learned={"is_variable": is_variable.copy()})
    is_variable[3] = False
    with pytest.raises(ConfigError, match="encoded with 11 of 12 genes as tokens"):
        learner(CONFIG, [objective], **SIZES, learned={"is_variable": is_variable})


def test_ranks_are_read_of_ranked_tokens_only():
    for settings in ({}, {"rank_position": "none", "context_genes": 3}):
        config = RankTransformerConfig(d_model=16, n_heads=2, **settings)
        learner(config, **RANKED)
        with pytest.raises(ConfigError, match="of these cells, gene_values, does not rank them"):
            learner(config, **SIZES)
    learner(RankTransformerConfig(d_model=16, n_heads=2, rank_position="none"), **SIZES)


def test_hidden_values_are_predicted_from_the_tokens_that_were_read(rng):
    torch.manual_seed(0)
    config = RankTransformerConfig(d_model=16, n_heads=2, rank_position="none", dropout=0)
    objective = MaskedValueConfig()
    model = learner(config, [objective], **SIZES).eval()
    hidden = model.hide(batch := pairs(rng, 9), draw_for(batch, 1))
    head, target = model.heads["masked_value"], hidden[VALUES]
    with torch.no_grad():
        states = model.network(hidden, tokens=True).token_states
        errors = (head(states) - target / 10) ** 2
        index = torch.randperm(len(target))[:40]
        found = objective.loss(Encoded(torch.zeros(9, 16), states[index], index), head, hidden)
        losses = model(hidden)[:, 0]
    cell = torch.arange(9).repeat_interleave(7)
    for tokens, of_tokens in ((torch.arange(63), losses), (index, found)):
        tokens = tokens[target[tokens] >= 0]
        expected = mean_of_cells(errors[tokens], cell[tokens], 9)
        torch.testing.assert_close(of_tokens, expected)


@pytest.mark.parametrize("n_cells", [1, 5])
def test_cells_that_are_one_or_all_the_same_scale_nothing(rng, n_cells):
    network = learner(ResidualMLPConfig(d_model=16, gene_init="random"), **RANKED).network
    one = pairs(rng, 1)
    same = {
        name: array.repeat(n_cells, *[1] * (array.ndim - 1))
        for name, array in one.items()
        if isinstance(array, torch.Tensor)
    }
    same |= {"lengths": [7] * n_cells, "offsets": torch.arange(0, 7 * n_cells + 1, 7)}
    network.scale_expression(same)
    assert (network.expression_norm.weight == 1).all()
    assert (network.expression_norm.bias == 0).all()
    network.scale_expression(pairs(rng, 50))
    assert network.expression_norm.weight.std() > 0.01
