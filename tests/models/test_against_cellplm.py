"""Cells as tokens, their latent and their counts, against CellPLM with the same weights."""

import pytest
import torch

from dataset.log_expression import TARGET_SUM
from dataset.vocabulary import N_SPECIALS
from models.cellplm import GRID, CellBlock, CellPLMConfig, position_sinusoids
from models.flow_attention import FlowAttention
from models.gaussian_mixture import GaussianMixture
from models.negative_binomial import nll_of_counts
from tests.made_up import N_GENES, N_TOKENS, network
from tests.originals import original, same_linear, same_weights

D, N_HEADS = 16, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def same_attention(theirs, ours: FlowAttention) -> None:
    """Give theirs the weights of ours, and no epsilon."""
    weights, biases = ours.to_qkv.weight.chunk(3), ours.to_qkv.bias.chunk(3)
    parts = theirs.query_projection, theirs.key_projection, theirs.value_projection
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        same_linear(part, weight, bias)
    same_weights(theirs.out_projection, ours.to_out)
    theirs.eps = 0.0


@pytest.fixture
def without_clamp(monkeypatch):
    """Let the original compete without its limit of 1, which about half of the cells exceed."""
    monkeypatch.setattr(torch, "clamp", lambda x, min, max: x)


def attentions():
    theirs = original("cellplm", "CellPLM.layer.flowformer").Flow_Attention(D, N_HEADS)
    return FlowAttention(D, N_HEADS).double(), theirs.double().eval()


@pytest.mark.usefixtures("without_clamp")
def test_attention_is_the_originals_without_its_clamp():
    ours, theirs = attentions()
    same_attention(theirs, ours)
    x = 3 * torch.randn(12, D, dtype=torch.float64)
    expected = torch.cat([theirs(part[None])[0] for part in x.split([7, 5])])
    torch.testing.assert_close(ours(x, [7, 5]), expected)


def test_attention_is_the_originals_where_no_cell_competes():
    ours, theirs = attentions()
    with torch.no_grad():
        ours.to_qkv.weight[D : 2 * D] = 0  # the same key for all
    same_attention(theirs, ours)
    x = 3 * torch.randn(7, D, dtype=torch.float64)
    torch.testing.assert_close(ours(x, [7]), theirs(x[None])[0])


@pytest.mark.usefixtures("without_clamp")
def test_a_block_is_the_originals_layer_without_its_clamp():
    layer = original("cellplm", "CellPLM.layer.flowformer").FlowformerLayer
    ours = CellBlock(D, N_HEADS, 2 * D, dropout=0.0).double()
    theirs = layer(D, N_HEADS).double().eval()
    same_attention(theirs.self_attn, ours.attention)
    for own, other in (
        (ours.norm_attention, theirs.norm1),
        (ours.norm_feed_forward, theirs.norm2),
        (ours.feed_forward, theirs._ff_block),
    ):
        for weights in own.parameters():
            torch.nn.init.normal_(weights)
        same_weights(other, own)
    x = torch.randn(7, D, dtype=torch.float64)
    torch.testing.assert_close(ours(x, [7]), theirs(x))


def test_a_cell_starts_as_the_originals_sum_of_its_genes(rows, batch):
    """Of counts per 10,000, which the original is not given."""
    omics = original("cellplm", "CellPLM.embedder.omics")
    ours = network(
        CellPLMConfig(d_model=D), n_vocabulary=N_GENES + N_SPECIALS, row_length=N_TOKENS
    )
    theirs = omics.OmicsEmbedder([f"gene{i}" for i in range(N_GENES)], D)
    theirs.load_state_dict({"emb": ours.token_embedding[N_SPECIALS:]})
    counts = torch.zeros(5, N_SPECIALS + N_GENES).scatter_add(
        1, rows["token_ids"], rows["counts"].float()
    )[:, N_SPECIALS:]
    expected = theirs({"x_seq": (counts * TARGET_SUM / rows["library_size"]).to_sparse()})
    torch.testing.assert_close(ours.sum_expression(batch, segment=0), expected)


def test_positions_on_the_grid_are_the_originals_in_another_order_of_columns():
    pe = original("cellplm", "CellPLM.utils.pe")
    theirs = pe.Sinusoidal2dPE(D, GRID, GRID)
    on_grid = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))
    coordinates = ((on_grid + 0.5) / GRID + 0.01) / 1.02  # in the middle of each step
    of_second, of_first = theirs(coordinates).unflatten(1, (2, D // 4, 2)).unbind(1)
    sines_then_cosines = [z.transpose(1, 2).flatten(1) for z in (of_first, of_second)]
    expected = torch.cat(sines_then_cosines, dim=1)
    torch.testing.assert_close(position_sinusoids(on_grid.float(), D), expected)


@pytest.fixture
def counted():
    """Return counts of cells, and means and inverse dispersions of a decoder."""
    mean, theta = (torch.rand(6, 10, dtype=torch.float64) + 0.1 for _ in range(2))
    return torch.poisson(8 * mean**4), mean, 3 * theta


def test_counts_are_as_likely_as_by_the_originals_negative_binomial(counted):
    objective = original("cellplm", "CellPLM.objective")
    counts, mean, theta = counted
    log_share = (mean / mean.sum(dim=1, keepdim=True)).log()
    log_mean = log_share + counts.sum(dim=1, keepdim=True).log()
    found = nll_of_counts(counts, log_mean, theta.log()).sum(dim=1).mean()
    genes, is_hidden = torch.arange(10), torch.ones(6, 10, dtype=torch.bool)
    theirs = objective.NBReconstructionLoss().eval()(
        {"mean": mean, "disp": theta},
        {"x_seq": counts, "gene_mask": genes, "input_mask": is_hidden},
    )
    torch.testing.assert_close(found, theirs)
    theirs = objective.NBDenoisingLoss()(
        {"mean": mean, "disp": theta}, {"label": counts, "gene_mask": genes}
    )
    torch.testing.assert_close(found, theirs)


def test_counts_are_as_likely_as_by_the_originals_zero_inflation_of_none(counted):
    objective = original("cellplm", "CellPLM.objective")
    counts, mean, theta = counted
    assert 0.2 < (counts == 0).double().mean() < 0.8
    scale = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = nll_of_counts(counts, (mean * scale[:, None]).log(), theta.log()).mean()
    theirs = objective.ZINBReconstructionLoss()(
        {"mean": mean, "disp": theta, "pi": torch.zeros_like(mean)},
        {
            "x_seq": counts,
            "scale_factor": scale,
            "input_mask": torch.ones(6, dtype=torch.bool),
        },
    )
    torch.testing.assert_close(found, theirs)


def around(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return points over which the mean of any quadratic is that over the Gaussian, ``(2 z, z)``.

    The original draws one point instead; the log densities are quadratic.
    """
    steps = torch.diag((len(mean) * variance).sqrt())
    return torch.cat([mean + steps, mean - steps])


def test_the_divergence_from_the_mixture_is_the_originals_loss_over_all_its_draws():
    autoencoders = original("cellplm", "CellPLM.latent.autoencoders")
    k, z = 4, 5
    theirs = autoencoders.GMVAELatentLayer(8, z, k, lamda=0.0).double()
    prior_mean, prior_variance = theirs.inference.pzy(torch.eye(k, dtype=torch.float64))
    ours = GaussianMixture(k, z).double()
    ours.load_state_dict({"mean": prior_mean, "log_variance": prior_variance.log()})
    mean, variance = torch.randn(6, z).double(), 0.1 + torch.rand(6, z).double()

    divergences = ours.divergences(mean, variance.log())
    assignment = ours.assignment(divergences)
    gaussian, whole = torch.zeros(6, k).double(), torch.zeros(6).double()
    for cell in range(6):
        points = around(mean[cell], variance[cell])
        for one in range(k):
            of_one = prior_mean[one], prior_variance[one]
            gaussian[cell, one] = theirs.gaussian_loss(points, mean[cell], variance[cell], *of_one)
            loss = theirs.unlabeled_loss(
                {
                    "gaussian": points,
                    "mean": mean[cell],
                    "var": variance[cell],
                    "y_mean": of_one[0],
                    "y_var": of_one[1],
                    "logits": assignment[cell : cell + 1].log(),
                    "prob_cat": assignment[cell : cell + 1],
                }
            )
            whole[cell] += assignment[cell, one] * loss
    torch.testing.assert_close(divergences, gaussian)
    torch.testing.assert_close(ours.divergence(divergences), whole)
