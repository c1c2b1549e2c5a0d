import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.nn.functional import pad

from dataset.tokenizers.rank import rank_tokens
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from training.augment import augment

N_GENES = 40


@pytest.fixture
def medians(rng) -> torch.Tensor:
    return torch.cat([torch.ones(4), torch.from_numpy(rng.gamma(2, 1, N_GENES)).float()])


@pytest.fixture
def batch(rng, medians) -> dict[str, torch.Tensor]:
    counts = csr_matrix(rng.poisson(3.0, (6, N_GENES)).astype(np.uint16))
    return encoded(counts, medians)


def encoded(counts: csr_matrix, medians: torch.Tensor) -> dict[str, torch.Tensor]:
    token_ids, at_tokens, _ = rank_tokens(counts, medians[N_SPECIALS:].numpy(), n_tokens=N_GENES)
    return {
        "token_ids": torch.from_numpy(token_ids.astype(np.int64)),
        "counts": torch.from_numpy(at_tokens.astype(np.float32)),
        "library_size": torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float32)),
        "labels": torch.zeros(6, dtype=torch.int64),
        "cell_index": torch.arange(6),
    }


def well_formed(token_ids: torch.Tensor) -> bool:
    real = token_ids != PAD
    return bool(
        (token_ids[:, 0] == CLS).all()
        and (real.long().diff(dim=1) <= 0).all()  # padding at the end, and nowhere else
        and not (token_ids[:, 1:] == CLS).any()
    )


def test_nothing_asked_nothing_done(batch, medians):
    assert augment(batch, medians, key=0) is batch


def test_token_dropout_leaves_out_genes_and_keeps_the_rest_in_order(batch, medians):
    changed = augment(batch, medians, key=0, token_dropout=0.3)
    assert well_formed(changed["token_ids"])
    n_genes = (batch["token_ids"] >= N_SPECIALS).sum()
    n_left = (changed["token_ids"] >= N_SPECIALS).sum()
    assert 0.5 < n_left / n_genes < 0.9
    for before, after, counts_before, counts_after in zip(
        batch["token_ids"], changed["token_ids"], batch["counts"], changed["counts"], strict=True
    ):
        after, counts_after = after[after != PAD], counts_after[after != PAD]
        kept = torch.isin(before, after)
        assert torch.equal(before[kept], after)
        assert torch.equal(counts_before[kept], counts_after)


def test_dropping_nearly_everything_keeps_cls(batch, medians):
    changed = augment(batch, medians, key=0, token_dropout=0.9999)
    assert well_formed(changed["token_ids"])


def test_thinned_rows_are_what_the_tokeniser_gives_for_thinned_cells(batch, medians):
    changed = augment(batch, medians, key=0, count_thinning=0.8)
    counts = np.zeros((6, N_GENES), dtype=np.uint16)
    for cell, (tokens, values) in enumerate(
        zip(changed["token_ids"], changed["counts"], strict=True)
    ):
        is_gene = tokens >= N_SPECIALS
        counts[cell, tokens[is_gene] - N_SPECIALS] = values[is_gene].numpy()
    again = encoded(csr_matrix(counts), medians)
    width = changed["token_ids"].shape[1]
    assert torch.equal(changed["token_ids"], again["token_ids"][:, :width])
    assert torch.equal(changed["counts"], again["counts"][:, :width])
    assert not (again["token_ids"][:, width:] != PAD).any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_token_dropout_leaves_out_the_share_it_is_given(rng, share):
    ids = N_SPECIALS + np.stack([rng.permutation(N_GENES) for _ in range(500)])
    token_ids = torch.from_numpy(np.pad(ids, ((0, 0), (1, 0)), constant_values=CLS))
    many = {
        "token_ids": token_ids,
        "counts": torch.ones(token_ids.shape),
        "library_size": torch.full((500, 1), 40.0),
        "cell_index": torch.arange(500),
    }
    changed = augment(many, torch.ones(4 + N_GENES), key=3, token_dropout=share)
    left = (changed["token_ids"] >= N_SPECIALS).sum(dim=1) / N_GENES
    assert left.mean().item() == pytest.approx(1 - share, abs=0.01)  # 4 deviations at most
    assert left.std().item() == pytest.approx((share * (1 - share) / N_GENES) ** 0.5, rel=0.2)


def test_thinned_ties_go_by_gene_index(rng):
    medians = torch.ones(4 + N_GENES)  # so that equal counts are ties
    batch = encoded(csr_matrix(rng.poisson(3.0, (6, N_GENES)).astype(np.uint16)), medians)
    changed = augment(batch, medians, key=1, count_thinning=0.8)
    n_ties = 0
    for tokens, counts in zip(changed["token_ids"], changed["counts"], strict=True):
        genes = tokens >= N_SPECIALS
        pairs = list(zip((-counts[genes]).tolist(), tokens[genes].tolist(), strict=True))
        assert pairs == sorted(pairs)
        n_ties += len(pairs) - len({count for count, _ in pairs})
    assert n_ties > 20


def test_thinning_only_removes_counts_and_shrinks_the_library(batch, medians):
    changed = augment(batch, medians, key=0, count_thinning=0.5)
    share = changed["library_size"] / batch["library_size"]
    assert ((share >= 0.5) & (share <= 1)).all()
    kept = changed["counts"].sum(1) / batch["counts"].sum(1)
    assert (kept < 1).all()
    torch.testing.assert_close(kept, share[:, 0], atol=0.12, rtol=0)


@pytest.mark.parametrize("choice", [{"token_dropout": 0.5}, {"count_thinning": 0.9}], ids=str)
def test_halves_stay_apart(medians, choice):
    now, previous = torch.arange(4, 14), torch.arange(20, 30)
    row = torch.cat(
        [torch.tensor([CLS]), now, torch.tensor([SEP]), previous, torch.zeros(3).long()]
    )
    batch = {
        "token_ids": row[None],
        "counts": torch.where(row >= 4, 2.0, 0.0)[None],
        "library_size": torch.tensor([[20.0, 20.0]]),
        "cell_index": torch.zeros(1).long(),
    }
    changed = augment(batch, medians, key=0, **choice)
    assert well_formed(changed["token_ids"])
    kept = changed["token_ids"][0].tolist()
    sep = kept.index(SEP)
    assert 0 < len(kept)
    assert set(kept[1:sep]) <= set(now.tolist())
    assert set(kept[sep + 1 :]) - {PAD} <= set(previous.tolist())
    assert changed["library_size"].shape == (1, 2)


def test_a_cell_without_genes_survives(medians):
    batch = {
        "token_ids": torch.tensor([[CLS, PAD]]),
        "counts": torch.zeros(1, 2),
        "library_size": torch.ones(1, 1),
        "cell_index": torch.zeros(1).long(),
    }
    changed = augment(batch, medians, key=0, token_dropout=0.5, count_thinning=0.5)
    assert changed["token_ids"].tolist() == [[CLS]]


def test_no_cells_stay_no_cells(batch, medians):
    none = {name: rows[:0] for name, rows in batch.items()}
    changed = augment(none, medians, key=0, token_dropout=0.5, count_thinning=0.5)
    assert len(changed["token_ids"]) == 0


def test_the_key_decides(batch, medians):
    rows = [
        augment(batch, medians, key=key, token_dropout=0.3)["token_ids"].tolist()
        for key in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("choice", [{"token_dropout": 0.3}, {"count_thinning": 0.7}], ids=str)
def test_a_cell_is_changed_the_same_way_in_any_company(batch, medians, choice):
    together = augment(batch, medians, key=5, **choice)
    for cells in ([4], [2, 0, 5]):
        wider = {**batch, **{k: pad(batch[k], (0, 7)) for k in ("token_ids", "counts")}}
        apart = augment({k: v[cells] for k, v in wider.items()}, medians, key=5, **choice)
        t = apart["token_ids"].shape[1]
        assert torch.equal(apart["token_ids"], together["token_ids"][cells, :t])
        assert torch.equal(apart["counts"], together["counts"][cells, :t])
        assert torch.equal(apart["library_size"], together["library_size"][cells])
