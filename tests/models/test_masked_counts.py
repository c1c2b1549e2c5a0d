import numpy as np
import pytest
import torch
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score

from configs.base import ConfigError
from dataset.batches import Batch
from dataset.vocabulary import CLS, N_SPECIALS, SEP
from models.cellplm import CellPLMConfig
from models.network import Encoded
from models.objectives.base import ORIGINAL_TOKENS, original_of, with_original
from models.objectives.masked_counts import NARROW, TARGET, MaskedCountsConfig, left_of_library
from models.objectives.whole_cell import expression_of_genes
from models.residual_mlp import ResidualMLPConfig
from tests.made_up import facts, learner
from training.counter_random import draw_for

N_GENES = 30
SIZES = {"n_vocabulary": N_SPECIALS + N_GENES, "row_length": N_GENES + 1}
CONDITIONS = {"conditions": {"donor": ["a", "b"]}}


def batch_of(counts: np.ndarray, donors=None) -> Batch:
    """Return the cells of a dense matrix, in sets of at most 50."""
    n = len(counts)
    rows = [np.flatnonzero(row) for row in counts]
    token_ids = [torch.tensor([CLS, *(genes + N_SPECIALS)]) for genes in rows]
    values = [torch.tensor([0.0, *row[genes]]) for row, genes in zip(counts, rows, strict=True)]
    lengths = [len(ids) for ids in token_ids]
    return {
        "token_ids": torch.cat(token_ids),
        "counts": torch.cat(values).float(),
        "offsets": torch.tensor([0, *lengths]).cumsum(0).int(),
        "lengths": lengths,
        "library_size": torch.tensor(counts.sum(axis=1, keepdims=True)).float(),
        "labels": torch.full((n,), -1),
        "conditions": torch.zeros(n, 1).long()
        if donors is None
        else torch.tensor(donors)[:, None],
        "cell_index": torch.arange(n),
        "sets": torch.tensor([*range(0, n, 50), n]),
    }


@pytest.fixture
def counts(rng):
    return rng.poisson(rng.gamma(1.0, 2.0, (8, N_GENES)))


def test_a_share_of_the_genes_loses_its_counts(rng):
    batch = batch_of(rng.poisson(2.0, (300, N_GENES)))
    known = facts(**SIZES)
    objective, batch = MaskedCountsConfig(hidden_fraction=0.3), with_original(batch)
    hidden = objective.hide(batch, draw_for(batch, 5), known)
    target = hidden[TARGET]
    assert (target[batch["token_ids"] < N_SPECIALS] == -1).all()
    is_hidden = target >= 0
    torch.testing.assert_close(target[is_hidden], batch["counts"][is_hidden])
    assert (hidden["counts"][is_hidden] == 0).all()
    assert torch.equal(hidden["counts"][~is_hidden], batch["counts"][~is_hidden])
    is_gene = batch["token_ids"] >= N_SPECIALS
    assert is_hidden.sum() / is_gene.sum() == pytest.approx(0.3, abs=0.02)
    left = [counts.sum() for counts in hidden["counts"].split(batch["lengths"])]
    torch.testing.assert_close(hidden["library_size"][:, 0], torch.stack(left))
    assert torch.equal(original_of(hidden)["library_size"], batch["library_size"])


def test_counts_in_no_token_are_hidden_in_proportion():
    """Of two profiles each has a library size of its own."""
    batch = {
        "token_ids": torch.tensor([CLS, 4, 5, SEP, 4, 6]),
        "counts": torch.tensor([0.0, 6, 2, 0, 5, 5]),
        "offsets": torch.tensor([0, 6]),
        "library_size": torch.tensor([[16.0, 10.0]]),  # half of the first is in no token
    }
    shown = torch.tensor([0.0, 6, 0, 0, 0, 5])
    assert left_of_library(batch, shown).tolist() == [[12.0, 5.0]]
    nothing = batch | {"counts": torch.zeros(6)}
    assert left_of_library(nothing, torch.zeros(6)).tolist() == [[0.0, 0.0]]


def test_of_a_panel_the_other_genes_are_always_hidden(rng):
    counts = rng.poisson(2.0, (300, N_GENES))
    panel = ("gene3", "gene7", "gene8", "of another species")
    objective = MaskedCountsConfig(hidden_fraction=0.4, measured_genes=panel)
    model = learner(ResidualMLPConfig(d_model=8), [objective], **SIZES).eval()
    batch = batch_of(counts)
    hidden = model.hide(batch, draw_for(batch, 5))
    is_shown, gene = hidden["counts"] > 0, batch["token_ids"] - N_SPECIALS
    assert set(gene[is_shown].tolist()) == {3, 7, 8}
    assert is_shown.sum() / torch.isin(gene, gene[is_shown]).sum() == pytest.approx(0.6, abs=0.06)
    weight = 1 / model.heads["masked_counts"].hidden_probability
    assert weight[[3, 4, 8]].tolist() == pytest.approx([2.5, 1, 2.5])
    unknown = MaskedCountsConfig(measured_genes=("of another species",))
    with pytest.raises(ConfigError, match="none of the 1 measured_genes is a gene"):
        learner(ResidualMLPConfig(d_model=8), [unknown], **SIZES)


def test_another_objective_still_has_the_whole_cell(counts):
    batch, objective = with_original(batch_of(counts)), MaskedCountsConfig(hidden_fraction=0.6)
    hidden = objective.hide(batch, draw_for(batch, 5), facts(**SIZES))
    expected = np.log1p(counts * (10_000 / counts.sum(axis=1, keepdims=True)))
    np.testing.assert_allclose(expression_of_genes(hidden, N_GENES), expected, rtol=1e-5)


def test_the_loss_is_the_bound_in_nats_a_gene(counts):
    """With every gene's own likelihood from scipy, hidden genes drawn or at their probability."""
    objective = MaskedCountsConfig(
        hidden_fraction=0.4, batch_key="donor", d_latent=3, n_components=4, free_nats=2.0
    )
    model = learner(ResidualMLPConfig(d_model=8), [objective], **SIZES, **CONDITIONS).eval()
    head = model.heads["masked_counts"]
    torch.nn.init.normal_(head.log_theta)
    batch = batch_of(counts, donors=[0, 1, -1, 0, 1, -1, 0, 1])
    batch = model.hide(batch, draw_for(batch, 5))
    embedding = torch.randn(8, 8)
    found = objective.loss(Encoded(embedding), head, batch).detach().numpy()
    latent = head.encode(embedding)
    told = torch.cat([head.batch_embedding.weight, head.batch_embedding.weight.mean(0)[None]])
    told = told[[0, 1, 2, 0, 1, 2, 0, 1]]
    x = head.layers(head.from_latent(latent.mean) + told) + told
    share = head.to_genes(x)[:, N_SPECIALS:].softmax(dim=1)
    mean = share.detach().numpy() * counts.sum(axis=1, keepdims=True)
    theta = head.log_theta[N_SPECIALS:].exp().detach().numpy()
    nll = -nbinom.logpmf(counts, theta, theta / (theta + mean))
    weight = np.where(counts > 0, 0.0, 0.4)
    cell = np.repeat(np.arange(8), batch["lengths"])
    gene = batch[ORIGINAL_TOKENS].numpy() - N_SPECIALS
    is_hidden = batch[TARGET].numpy() >= 0
    weight[cell[is_hidden], gene[is_hidden]] = 1
    divergence = np.maximum(latent.divergence.detach().numpy(), 2.0)
    expected = ((weight * nll).sum(axis=1) / 0.4 + divergence) / N_GENES
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_of_two_time_points_the_present_is_decoded(two_segments):
    """The loss does not know the previous profile, though what is shown of it may be hidden."""
    objective, known = MaskedCountsConfig(hidden_fraction=0.5), facts(**SIZES, n_segments=2)
    head = objective.head(ResidualMLPConfig(d_model=8).build(known), 0.0, known).eval()
    two_segments |= {"cell_index": torch.arange(5)}
    batch, keep, segment = with_original(two_segments), [], 0
    for token in two_segments["token_ids"].tolist():
        segment = {CLS: 0, SEP: 1}.get(token, segment)
        keep.append(segment == 0)
    keep = torch.tensor(keep)
    lengths = [int(of_cell.sum()) for of_cell in keep.split(two_segments["lengths"])]
    hidden = objective.hide(batch, draw_for(batch, 5), known)
    assert (hidden[TARGET][keep] >= 0).any()
    present = {
        "labels": two_segments["labels"],
        "conditions": two_segments["conditions"],
        "token_ids": two_segments["token_ids"][keep],
        "counts": two_segments["counts"][keep],
        "offsets": torch.tensor([0, *lengths]).cumsum(0).int(),
        "lengths": lengths,
        "library_size": two_segments["library_size"][:, :1],
    }
    present = with_original(present) | {TARGET: hidden[TARGET][keep]}
    encoded = Encoded(torch.randn(5, 8))
    torch.testing.assert_close(
        objective.loss(encoded, head, hidden), objective.loss(encoded, head, present)
    )


def test_the_mean_over_draws_is_the_likelihood_of_all_genes(counts):
    objective = MaskedCountsConfig(hidden_fraction=0.3, free_nats=0.0)
    model = learner(ResidualMLPConfig(d_model=8), [objective], **SIZES).eval()
    head, encoded, batch = (
        model.heads["masked_counts"],
        Encoded(torch.randn(8, 8)),
        batch_of(counts),
    )
    with torch.no_grad():
        draws = [
            objective.loss(encoded, head, model.hide(batch, draw_for(batch, i)))
            for i in range(400)
        ]
        everything = objective.model_copy(update={"hidden_fraction": 1.0})
        head.hidden_probability.fill_(1)
        whole = everything.hide(with_original(batch), draw_for(batch, 0), model.facts)
        expected = everything.loss(encoded, head, whole)
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), expected, rtol=0.05, atol=0)


def test_the_divergence_is_free_up_to_a_point(counts):
    free = MaskedCountsConfig(free_nats=1e4)
    model = learner(ResidualMLPConfig(d_model=8), [free], **SIZES)
    batch = model.hide(batch_of(counts), draw_for(batch_of(counts), 5))
    model(batch).sum().backward()
    prior = model.heads["masked_counts"].prior
    assert not prior.mean.grad.any()
    costs = learner(ResidualMLPConfig(d_model=8), [MaskedCountsConfig(free_nats=0)], **SIZES)
    costs(batch).sum().backward()
    for name, parameter in costs.heads["masked_counts"].named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_latent_is_drawn_in_training_only(counts):
    model = learner(ResidualMLPConfig(d_model=8), [MaskedCountsConfig()], **SIZES)
    head, embedding = model.heads["masked_counts"], torch.randn(500, 8)
    latent = head.train().encode(embedding)
    _, log_variance = head.to_posterior(embedding).chunk(2, dim=1)
    log_variance = log_variance + NARROW
    noise = (latent.sample - latent.mean) / (0.5 * log_variance).exp()
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    latent = head.eval().encode(embedding)
    assert torch.equal(latent.sample, latent.mean)


def test_a_column_that_the_folder_lacks_is_said():
    objective = MaskedCountsConfig(batch_key="donor")
    with pytest.raises(ConfigError, match="decodes by the obs column 'donor'"):
        learner(ResidualMLPConfig(d_model=8), [objective], **SIZES)


@pytest.mark.parametrize("network", ["cellplm", "residual_mlp"])
def test_a_mixture_that_is_there_is_found(rng, network):
    """Four groups of cells, each with six genes of its own; no label is shown."""
    torch.manual_seed(0)
    group, profile = rng.integers(0, 4, 200), rng.gamma(2.0, 1.0, N_GENES) * np.ones((4, 1))
    for i in range(4):
        profile[i, 6 * i : 6 * i + 6] *= 10
    batch = batch_of(rng.poisson(profile[group]))
    sizes = {"d_model": 32, "n_layers": 1, "dropout": 0, "gene_init": "random"}
    config = {
        "cellplm": CellPLMConfig(sample_key="donor", **sizes),
        "residual_mlp": ResidualMLPConfig(**sizes),
    }[network]
    objective = MaskedCountsConfig(d_latent=4, n_components=4, free_nats=1.0)
    model = learner(config, [objective], **SIZES, **CONDITIONS)
    model.network.scale_expression(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(400):
        loss = model(model.hide(batch, draw_for(batch, step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        hidden = model.hide(batch, draw_for(batch, 10_000))
        found = model.eval()(hidden, predict=["masked_counts"])
    component = found["masked_counts_component"].argmax(dim=1)
    assert adjusted_rand_score(group, component) > 0.9
