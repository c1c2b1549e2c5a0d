"""Batch normalization by domain: against torch's of each domain and numpy, and a planted shift."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from models.domain_batch_norm import DomainBatchNorm
from models.network import TrainCells
from models.objectives.classify import ClassifyConfig
from models.value_embedding import HIDDEN, hide_values
from models.value_transformer import ValueTransformerConfig
from tests.made_up import learner, network
from tests.value_cells import CONFIG, N_GENES, SIZES, cells_of, train

D = 3
BY_BATCH = CONFIG.model_copy(update={"batch_norm_by": "batch"})


def rows(n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows of two domains and of unknown ones, not in order, most of them counted."""
    codes = torch.randint(-1, 2, (n,))
    x = (1 + codes[:, None]) + (2.0 + codes[:, None]) * torch.randn(n, D)
    return x, codes, torch.rand(n) < 0.7


def by_numpy(x, codes, is_counted) -> np.ndarray:
    """Return what each row is, among those of its domain, or of all where that is unknown."""
    x, codes, is_counted = (a.detach().numpy() for a in (x.double(), codes, is_counted))
    normed = np.empty_like(x)
    for row, code in enumerate(codes):
        counted = x[is_counted & ((codes == code) | (code == -1))]
        normed[row] = (x[row] - counted.mean(axis=0)) / np.sqrt(counted.var(axis=0) + 1e-5)
    return normed


def test_rows_are_normalized_among_those_of_their_own_domain():
    torch.manual_seed(0)
    norm, (x, codes, is_counted) = DomainBatchNorm(2, D), rows()
    found = norm(x, codes, is_counted)
    np.testing.assert_allclose(found, by_numpy(x, codes, is_counted), atol=1e-5)
    order = torch.randperm(len(x))
    shuffled = DomainBatchNorm(2, D)(x[order], codes[order], is_counted[order])
    torch.testing.assert_close(shuffled, found[order])  # whose cell is first means nothing
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DomainBatchNorm(2, D)(x, codes, is_counted), found)


def test_of_each_domain_it_is_torchs_with_gradients_and_running_statistics():
    torch.manual_seed(0)
    norm = DomainBatchNorm(2, D)
    theirs = [nn.BatchNorm1d(D, momentum=None, affine=False) for _ in range(2)]
    of_all = nn.BatchNorm1d(D, momentum=None, affine=False)
    for _ in range(6):
        x, codes, _ = rows()
        weights, is_all = torch.randn(len(x), D), torch.ones(len(x), dtype=torch.bool)
        ours, other = (x.clone().requires_grad_() for _ in range(2))
        (norm(ours, codes, is_all) * weights).sum().backward()
        normed = of_all(other) * (codes == -1)[:, None]
        for code, module in enumerate(theirs):
            of_domain = torch.where(codes == code)[0]
            normed = normed.index_add(0, of_domain, module(other[of_domain]))
        (normed * weights).sum().backward()
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=1e-4)
    for row, module in enumerate([of_all, *theirs]):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(norm, name)[row], getattr(module, name))
    assert norm.num_batches_tracked.tolist() == [6, 6, 6]


def test_after_ten_batches_the_mean_moves_as_torchs_does():
    torch.manual_seed(0)
    norm, seen = DomainBatchNorm(1, D), []
    for _ in range(25):
        x = torch.randn(20, D)
        seen.append(x.numpy().mean(axis=0))
        norm(x, torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.bool))
    expected = np.mean(seen[:10], axis=0)
    for mean in seen[10:]:
        expected = 0.9 * expected + 0.1 * mean
    np.testing.assert_allclose(norm.running_mean[1], expected, atol=1e-6)


def test_evaluation_and_domains_without_rows_take_the_running_statistics():
    torch.manual_seed(0)
    norm, (x, codes, is_counted) = DomainBatchNorm(3, D), rows()
    norm(x, codes, is_counted)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    assert torch.equal(mean[3], torch.zeros(D))  # it had no rows, and no batch is counted for it
    assert norm.num_batches_tracked.tolist() == [1, 1, 1, 0]
    domain = torch.tensor([1, 3, 2, 0])
    expected = (x[:4] - mean[domain]) / (var[domain] + 1e-5).sqrt()
    alone = torch.tensor([True, True, False, False])  # one row of two domains, none of the others
    first = norm(x[:4], domain - 1, torch.tensor([True, False, False, False]))
    torch.testing.assert_close(first, expected)
    assert torch.equal(norm.running_mean, mean)
    assert norm(x[:4], domain - 1, alone)[3].abs().max() < 10  # over two rows
    norm.eval()
    before = norm.running_mean.clone()
    together = norm(x, codes, is_counted)
    for row in range(3):
        torch.testing.assert_close(
            norm(x[row : row + 1], codes[row : row + 1], alone[:1])[0], together[row]
        )
    assert torch.equal(norm.running_mean, before)


# --------------------------------------------------------------------- in a network of values


def shifted(rng: np.random.Generator, n_cells: int) -> dict:
    """Make cells of two types, by the first four genes, and two batches, by all values."""
    labels, batches = rng.integers(0, 2, (2, n_cells))
    genes = np.tile(np.arange(N_GENES), (n_cells, 1))
    values = rng.integers(1, 6, (n_cells, N_GENES)) + 3 * batches[:, None]
    values[:, :4] += 2 * labels[:, None]
    return cells_of(genes, values, labels, batches)


def test_the_genes_of_known_value_are_normalized_in_ragged_cells(rng):
    batch = shifted(rng, 6)
    batch["conditions"] = torch.tensor([[0], [1], [-1], [0], [1], [1]])
    keep = torch.ones(6 * 13, dtype=torch.bool)
    keep[[5, 20, 21, 22, 60]] = False  # cells of different lengths
    cell = torch.arange(6).repeat_interleave(13)[keep]
    lengths = torch.bincount(cell)
    batch |= {name: batch[name][keep] for name in ("token_ids", "values", "counts")}
    batch |= {"lengths": lengths.tolist(), "offsets": nn.functional.pad(lengths.cumsum(0), (1, 0))}
    is_gene = batch["token_ids"] > 3
    is_hidden = is_gene & (torch.arange(len(cell)) % 5 == 0)
    batch = hide_values(batch, is_hidden)
    torch.manual_seed(0)
    plain = network(CONFIG, **SIZES).train()
    torch.manual_seed(0)
    ours = network(BY_BATCH, **SIZES).train()
    with torch.no_grad():
        x, found = plain.embed(batch)[0], ours.embed(batch)[0]
    codes, is_known = batch["conditions"][cell, 0], is_gene & (batch["values"] != HIDDEN)
    expected = np.where(is_gene[:, None], by_numpy(x, codes, is_known), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_starts_with_the_statistics_of_train_cells(rng):
    batch = shifted(rng, 40)
    model = network(BY_BATCH, **SIZES)
    BY_BATCH.start(model, TrainCells(None, {100: batch}.get), rng)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().embed(batch)[0], model.train().embed(batch)[0], atol=0.01, rtol=0
        )
    assert model.batch_norm.running_mean.abs().min() > 0


def test_training_forgets_the_domain_of_some_cells(rng):
    batch = shifted(rng, 400)
    forgetful = BY_BATCH.model_copy(update={"dropout": 0.4})
    torch.manual_seed(0)
    model = network(forgetful, **SIZES)
    told = model.train().forget_conditions(batch)["conditions"]
    assert (told == -1).float().mean() == pytest.approx(0.4, abs=0.06)
    assert model.eval().forget_conditions(batch) is batch


def test_a_shift_of_the_values_is_removed_and_the_types_stay():
    new, found = shifted(np.random.default_rng(2), 400), {}
    for config in (CONFIG, BY_BATCH):
        torch.manual_seed(0)
        model, rng = learner(config, [ClassifyConfig()], **SIZES), np.random.default_rng(1)
        train(model, lambda rng=rng: shifted(rng, 64), n_steps=100, lr=1e-2)
        with torch.no_grad():
            x = model.eval()(new, predict=())["embeddings"].numpy()
        codes = new["labels"].numpy(), new["conditions"][:, 0].numpy()
        probes = [LogisticRegression(max_iter=1000).fit(x[:200], c[:200]) for c in codes]
        found[config.batch_norm_by] = [
            probe.score(x[200:], c[200:]) for probe, c in zip(probes, codes, strict=True)
        ]
    (types_without, batch_without), (types, batch) = found.values()
    assert batch_without > 0.9
    assert batch < 0.65
    assert types > types_without > 0.8


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="batch_norm_by 'donor'.*say cls_init: learned"):
        ValueTransformerConfig(batch_norm_by="donor")
