import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.nn import functional as F

from dataset.vocabulary import CLS, MASK, N_SPECIALS
from models.network import Encoded
from models.objectives.masked_gene import TARGET, MaskedGeneConfig
from models.rank_transformer import RankTransformerConfig
from tests.made_up import facts, learner
from training.counter_random import draw_for

N_GENES = 40
FACTS = facts(n_vocabulary=N_SPECIALS + N_GENES, row_length=31)


def cells_of_genes(rows: list[list[int]]) -> dict:
    """Lay cells of these genes end to end, each after ``<cls>``; every count is 3."""
    lengths = [1 + len(row) for row in rows]
    token_ids = [token for row in rows for token in (CLS, *(N_SPECIALS + g for g in row))]
    token_ids = torch.tensor(token_ids)
    return {
        "token_ids": token_ids,
        "counts": torch.where(token_ids >= N_SPECIALS, 3.0, 0.0),
        "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "lengths": lengths,
        "library_size": torch.full((len(rows), 1), 100.0),
        "labels": torch.full((len(rows),), -1),
        "conditions": torch.zeros(len(rows), 0, dtype=torch.long),
        "cell_index": torch.arange(len(rows)),
    }


@pytest.fixture
def batch(rng):
    return cells_of_genes([rng.permutation(N_GENES)[:30].tolist() for _ in range(300)])


def test_shares_of_genes_are_masked_replaced_and_kept(batch):
    objective = MaskedGeneConfig(masked_fraction=0.2)
    found = objective.hide(batch, draw_for(batch, 5), FACTS)
    target, before, after = found[TARGET], batch["token_ids"], found["token_ids"]
    hidden = target >= 0
    assert torch.equal(target[hidden], before[hidden])
    assert torch.equal(after[~hidden], before[~hidden])
    assert not hidden[before < N_SPECIALS].any()
    n = hidden.sum().item()
    assert n / (before >= N_SPECIALS).sum() == pytest.approx(0.2, abs=0.02)
    is_masked, is_kept = after[hidden] == MASK, after[hidden] == before[hidden]
    assert is_masked.float().mean() == pytest.approx(0.8, abs=0.04)
    assert is_kept.float().mean() == pytest.approx(0.1 + 0.1 / N_GENES, abs=0.03)
    others = after[hidden][~is_masked & ~is_kept]
    assert others.min() >= N_SPECIALS  # a random gene, never a special token
    assert others.max() < N_SPECIALS + N_GENES
    assert len(others.unique()) > 30
    counts = found["counts"]
    assert (counts[after == MASK] == 0).all()  # or it would say how high the gene was
    assert torch.equal(counts[after != MASK], batch["counts"][after != MASK])


def test_what_is_hidden_of_a_cell_does_not_depend_on_its_neighbors(batch):
    objective = MaskedGeneConfig()
    whole = objective.hide(batch, draw_for(batch, 5), FACTS)
    genes = batch["token_ids"][batch["offsets"][7] + 1 : batch["offsets"][8]] - N_SPECIALS
    alone = cells_of_genes([genes.tolist()]) | {"cell_index": torch.tensor([7])}
    found = objective.hide(alone, draw_for(alone, 5), FACTS)
    rows = slice(batch["offsets"][7], batch["offsets"][8])
    assert torch.equal(found["token_ids"], whole["token_ids"][rows])
    other = objective.hide(batch, draw_for(batch, 6), FACTS)
    assert not torch.equal(other["token_ids"], whole["token_ids"])


def test_the_loss_of_a_cell_is_the_mean_over_its_hidden_tokens():
    torch.manual_seed(0)
    objective = MaskedGeneConfig()
    batch = cells_of_genes([[3, 4, 5], [6, 7], [8]])
    target = torch.full((9,), -1)
    for place in (1, 3, 5):  # two of the first cell, one of the second
        target[place] = batch["token_ids"][place]
    states = torch.randn(9, 8)
    logits = torch.randn(9, N_SPECIALS + N_GENES)

    def head(hidden):  # the states come in order
        places = [int((states == row).all(dim=1).nonzero()) for row in hidden]
        return logits[places]

    expected = F.cross_entropy(logits, target.clamp(min=0), reduction="none")
    expected = torch.stack([(expected[1] + expected[3]) / 2, expected[5], torch.tensor(0.0)])
    encoded = Encoded(torch.zeros(3, 8), states)
    found = objective.loss(encoded, head, batch | {TARGET: target})
    torch.testing.assert_close(found, expected)
    # A network that reads some tokens only says which.
    index = torch.tensor([0, 1, 4, 5])
    encoded = Encoded(torch.zeros(3, 8), states[index], index)
    found = objective.loss(encoded, head, batch | {TARGET: target})
    first = F.cross_entropy(logits[1:2], target[1:2])
    torch.testing.assert_close(found, torch.stack([first, expected[1], torch.tensor(0.0)]))


def test_the_loss_is_that_of_plain_numpy(batch):
    torch.manual_seed(0)
    config = RankTransformerConfig(d_model=16, n_heads=2, gene_init="random", dropout=0)
    model = learner(config, [MaskedGeneConfig()], n_vocabulary=N_SPECIALS + N_GENES, row_length=31)
    head = model.heads["masked_gene"]
    torch.nn.init.normal_(head.bias)
    hidden = model.hide(batch, draw_for(batch, 3))
    with torch.no_grad():
        found = model(hidden)[:, 0].numpy()
        states = model.network(hidden, tokens=True).token_states.double().numpy()
    linear, _, norm = head.layers
    weight, bias, scale, shift, embedding, out = (
        p.detach().double().numpy()
        for p in (linear.weight, linear.bias, norm.weight, norm.bias,
                  model.network.gene_embedding.weight, head.bias)
    )  # fmt: skip
    x = states @ weight.T + bias
    x = x * (1 + erf(x / np.sqrt(2))) / 2
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * scale + shift
    logits = x @ embedding.T + out
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target, offsets = hidden[TARGET].numpy(), batch["offsets"].numpy()
    for cell, loss in enumerate(found):
        rows = np.arange(offsets[cell], offsets[cell + 1])
        rows = rows[target[rows] >= 0]
        expected = -log_p[rows, target[rows]].mean() if len(rows) else 0.0
        assert loss == pytest.approx(expected, abs=1e-4)


def test_by_default_15_percent_are_hidden_as_by_the_papers():
    default = MaskedGeneConfig()
    shares = (default.masked_fraction, default.mask_token_fraction, default.random_fraction)
    assert shares == (0.15, 0.8, 0.1)
    for wrong in ({"mask_token_fraction": 0.95}, {"random_fraction": 0.3}):
        with pytest.raises(ValueError, match="more than all hidden genes"):
            MaskedGeneConfig(**wrong)


def test_the_output_embedding_is_the_networks_own():
    config = RankTransformerConfig(d_model=16, n_heads=2, gene_init="random")
    model = learner(config, [MaskedGeneConfig()], n_vocabulary=N_SPECIALS + N_GENES)
    names = [name for name, _ in model.named_parameters()]
    assert sum("embedding" in name for name in names) == 2  # genes and positions, once each
    head = model.heads["masked_gene"]
    states = torch.randn(5, 16)
    expected = head.layers(states) @ model.network.gene_embedding.weight.T + head.bias
    torch.testing.assert_close(head(states), expected)


def test_a_gene_that_another_one_determines_is_learned(rng):
    """Genes come in pairs: whoever sees one of a pair can name the other."""
    torch.manual_seed(0)
    config = RankTransformerConfig(
        d_model=32, n_heads=4, n_layers=2, dropout=0, gene_init="random", cls_init="learned"
    )
    objective = MaskedGeneConfig(masked_fraction=0.3)
    model = learner(config, [objective], n_vocabulary=N_SPECIALS + N_GENES, row_length=31)
    pairs = rng.integers(0, N_GENES // 2, 256)
    batch = cells_of_genes([rng.permutation([2 * i, 2 * i + 1]).tolist() for i in pairs])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        hidden = model.hide(batch, draw_for(batch, step))
        loss = model(hidden).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden = model.hide(batch, draw_for(batch, 10_000))
    with torch.no_grad():
        found = model.eval()(hidden, predict=["masked_gene"])
    scores = objective.score({k: v.numpy() for k, v in found.items()}, batch["labels"].numpy())
    # In three cells of ten the other one is hidden too. Chance is 1 of 40.
    assert 0.6 < scores["masked_gene_accuracy"] < 0.95
