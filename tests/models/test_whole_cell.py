import numpy as np
import pytest
import torch

from dataset.vocabulary import MASK, N_SPECIALS
from models.objectives.base import ORIGINAL_TOKENS
from models.objectives.masked_gene import TARGET, MaskedGeneConfig
from models.objectives.whole_cell import WholeCellConfig, expression_of_genes
from models.rank_transformer import RankTransformerConfig
from tests.made_up import N_GENES, N_TOKENS, learner, ragged
from training.counter_random import draw_for

SIZES = {"n_vocabulary": N_SPECIALS + N_GENES, "row_length": N_TOKENS}


def model_of(*objectives, **settings):
    torch.manual_seed(0)
    settings = {"d_model": 16, "n_heads": 2, "gene_init": "random", "dropout": 0} | settings
    return learner(RankTransformerConfig(**settings), list(objectives), **SIZES)


def test_tokens_are_hidden_with_their_counts_and_kept_aside(batch):
    objective = WholeCellConfig(hidden_fraction=0.5)
    found = model_of(objective).hide(batch, draw_for(batch, 1))
    is_gene, hidden = batch["token_ids"] >= N_SPECIALS, found["token_ids"] == MASK
    assert 0.2 < hidden.sum() / is_gene.sum() < 0.8
    assert not hidden[~is_gene].any()
    assert (found["counts"][hidden] == 0).all()
    assert torch.equal(found["counts"][~hidden], batch["counts"][~hidden])
    assert torch.equal(found[ORIGINAL_TOKENS], batch["token_ids"])


def test_the_loss_is_that_of_plain_numpy(batch, rows):
    objective = WholeCellConfig()
    model = model_of(objective)
    torch.nn.init.normal_(model.heads["whole_cell"].bias.weight)
    hidden = model.hide(batch, draw_for(batch, 1))
    with torch.no_grad():
        found = model(hidden)[:, 0].numpy()
        out = model.heads["whole_cell"](model.network(hidden).cell_embedding).double().numpy()
    for cell, loss in enumerate(found):
        expression = np.zeros(N_GENES)  # from the padded rows, before anything is hidden
        for token, count in zip(rows["token_ids"][cell], rows["counts"][cell], strict=True):
            if token >= N_SPECIALS:
                size = float(rows["library_size"][cell, 0])
                expression[token - N_SPECIALS] = np.log1p(float(count) * 1e4 / size)
        p = 1 / (1 + np.exp(-out[cell, 0]))
        expected = -np.where(expression > 0, np.log(p), np.log1p(-p)).mean()
        if (detected := expression > 0).any():
            expected += ((out[cell, 1] - expression)[detected] ** 2).mean()
        assert loss == pytest.approx(expected, rel=1e-4)


def test_only_the_first_segment_is_decoded(batch, two_segments):
    objective = WholeCellConfig(hidden_fraction=0)
    one, two = (
        learner(
            RankTransformerConfig(d_model=16, n_heads=2), [objective], n_segments=n, **SIZES
        ).hide(cells, draw_for(cells, 0))
        for n, cells in ((1, batch), (2, two_segments))
    )
    torch.testing.assert_close(
        expression_of_genes(one, N_GENES), expression_of_genes(two, N_GENES)
    )


@pytest.mark.parametrize("order", [1, -1])
def test_beside_masked_genes_both_know_what_the_cell_was(batch, order):
    objectives = [MaskedGeneConfig(masked_fraction=0.9), WholeCellConfig()][::order]
    model = model_of(*objectives)
    hidden = model.hide(batch, draw_for(batch, 2))
    target = hidden[TARGET]
    assert torch.equal(hidden[ORIGINAL_TOKENS], batch["token_ids"])
    assert torch.equal(target[target >= 0], batch["token_ids"][target >= 0])
    losses = model(hidden)
    assert losses.shape == (5, 2)
    losses.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_programs_of_genes_are_decoded_from_half_of_a_cell(rng):
    """Cells are of two programs, of 12 genes each; who sees six of them knows the others."""
    n = 64
    program = rng.integers(0, 2, n)
    token_ids, counts = np.zeros((n, 13), dtype=np.int64), np.zeros((n, 13), dtype=np.int64)
    token_ids[:, 0] = 1
    level = rng.permutation(np.repeat([1, 2, 4, 8, 16, 32], 4))
    for cell in range(n):
        genes = 12 * program[cell] + rng.permutation(12)
        token_ids[cell, 1:], counts[cell, 1:] = N_SPECIALS + genes, level[genes]
    size = np.full((n, 1), 1000.0)
    batch = ragged({
        "token_ids": torch.from_numpy(token_ids), "counts": torch.from_numpy(counts),
        "library_size": torch.from_numpy(size).float(),
    })  # fmt: skip
    model = model_of(WholeCellConfig(), d_model=32, n_heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        loss = model(model.hide(batch, draw_for(batch, step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden = model.hide(batch, draw_for(batch, 10_000))
    with torch.no_grad():
        out = model.eval().heads["whole_cell"](model.network(hidden).cell_embedding)
    genes = np.arange(N_GENES)
    expected = (genes[None, :] // 12 == program[:, None]) & (genes[None, :] < 24)
    is_detected = out[:, 0].numpy() > 0
    assert (is_detected == expected).mean() > 0.99  # chance, the commoner answer: 0.6
    truth = np.log1p(10 * np.pad(level, (0, N_GENES - 24)))
    error = (out[:, 1].numpy() - truth)[expected]
    assert np.sqrt((error**2).mean()) < 0.2 * truth[:24].std()
