from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from dataset.batches import BatchReader, EncodedCells, to_device
from dataset.tokenizers.rank import RankConfig, rank_tokens
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from training.augment import augment

N_GENES = 40


@pytest.fixture
def medians(rng) -> torch.Tensor:
    return torch.from_numpy(rng.gamma(2, 1, N_GENES)).float()


@pytest.fixture
def reorder(medians):
    return partial(RankConfig().reorder, learned={"medians": medians})


@pytest.fixture
def cells(rng, medians) -> EncodedCells:
    return encoded(csr_matrix(rng.poisson(3.0, (6, N_GENES)).astype(np.uint16)), medians)


@pytest.fixture
def batch(cells):
    return read(cells)


def encoded(counts: csr_matrix, medians: torch.Tensor) -> EncodedCells:
    token_ids, at_tokens, _ = rank_tokens(counts, medians.numpy(), n_tokens=N_GENES)
    return in_memory(token_ids, at_tokens, np.asarray(counts.sum(1)))


def in_memory(token_ids, counts, library_size) -> EncodedCells:
    n = len(token_ids)
    return EncodedCells(
        arrays={"token_ids": np.asarray(token_ids), "counts": np.asarray(counts)},
        lengths=(np.asarray(token_ids) != PAD).sum(axis=1),
        library_size=np.asarray(library_size, dtype=np.float32),
        labels=np.zeros(n, dtype=np.int64),
        conditions=np.zeros((n, 0), dtype=np.int64),
    )


def read(cells: EncodedCells, rows=None):
    rows = range(len(cells)) if rows is None else rows
    return to_device(BatchReader(cells).read(np.asarray(rows, dtype=np.int64)), "cpu")


def rows_of(batch, name: str = "token_ids") -> tuple[torch.Tensor, ...]:
    """Each cell's own tokens."""
    return batch[name].split(batch["lengths"])


def well_formed(batch) -> bool:
    n = len(batch["token_ids"])
    return (
        all(row[0] == CLS and not (row[1:] == CLS).any() for row in rows_of(batch))
        and not (batch["token_ids"] == PAD).any()
        and n == len(batch["counts"]) == batch["offsets"][-1]
        and batch["offsets"].diff().tolist() == batch["lengths"]
    )


def test_nothing_asked_nothing_done(batch, reorder):
    assert augment(batch, reorder, key=0) is batch


def test_token_dropout_leaves_out_genes_and_keeps_the_rest_in_order(batch, reorder):
    changed = augment(batch, reorder, key=0, token_dropout=0.3)
    assert well_formed(changed)
    n_genes = (batch["token_ids"] >= N_SPECIALS).sum()
    n_left = (changed["token_ids"] >= N_SPECIALS).sum()
    assert 0.5 < n_left / n_genes < 0.9
    for before, after, counts_before, counts_after in zip(
        *(rows_of(x, name) for name in ("token_ids", "counts") for x in (batch, changed)),
        strict=True,
    ):
        kept = torch.isin(before, after)
        assert torch.equal(before[kept], after)
        assert torch.equal(counts_before[kept], counts_after)


def test_dropping_nearly_everything_keeps_cls(batch, reorder):
    changed = augment(batch, reorder, key=0, token_dropout=0.9999)
    assert well_formed(changed)


def test_thinned_rows_are_what_the_tokenizer_gives_for_thinned_cells(batch, medians, reorder):
    changed = augment(batch, reorder, key=0, count_thinning=0.8)
    counts = np.zeros((6, N_GENES), dtype=np.uint16)
    for cell, (tokens, values) in enumerate(
        zip(rows_of(changed), rows_of(changed, "counts"), strict=True)
    ):
        is_gene = tokens >= N_SPECIALS
        counts[cell, tokens[is_gene] - N_SPECIALS] = values[is_gene].numpy()
    again = read(encoded(csr_matrix(counts), medians))
    assert changed["lengths"] == again["lengths"] != batch["lengths"]
    assert torch.equal(changed["token_ids"], again["token_ids"])
    assert torch.equal(changed["counts"], again["counts"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_token_dropout_leaves_out_the_share_it_is_given(rng, reorder, share):
    ids = N_SPECIALS + np.stack([rng.permutation(N_GENES) for _ in range(500)])
    ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=CLS)
    many = read(in_memory(ids, np.ones(ids.shape), np.full((500, 1), 40.0)))
    changed = augment(many, reorder, key=3, token_dropout=share)
    left = torch.stack([(row >= N_SPECIALS).sum() for row in rows_of(changed)]) / N_GENES
    assert left.mean().item() == pytest.approx(1 - share, abs=0.01)  # 4 deviations at most
    assert left.std().item() == pytest.approx((share * (1 - share) / N_GENES) ** 0.5, rel=0.2)


def test_thinned_ties_go_by_gene_index(rng):
    medians = torch.ones(N_GENES)  # so that equal counts are ties
    cells = encoded(csr_matrix(rng.poisson(3.0, (6, N_GENES)).astype(np.uint16)), medians)
    reorder = partial(RankConfig().reorder, learned={"medians": medians})
    changed = augment(read(cells), reorder, key=1, count_thinning=0.8)
    n_ties = 0
    for tokens, counts in zip(rows_of(changed), rows_of(changed, "counts"), strict=True):
        genes = tokens >= N_SPECIALS
        pairs = list(zip((-counts[genes]).tolist(), tokens[genes].tolist(), strict=True))
        assert pairs == sorted(pairs)
        n_ties += len(pairs) - len({count for count, _ in pairs})
    assert n_ties > 20


def test_thinning_only_removes_counts_and_shrinks_the_library(batch, reorder):
    changed = augment(batch, reorder, key=0, count_thinning=0.5)
    share = changed["library_size"] / batch["library_size"]
    assert ((share >= 0.5) & (share <= 1)).all()
    before, after = (
        torch.stack([row.sum() for row in rows_of(x, "counts")]) for x in (batch, changed)
    )
    assert (after / before < 1).all()
    torch.testing.assert_close(after / before, share[:, 0], atol=0.12, rtol=0)


@pytest.mark.parametrize("choice", [{"token_dropout": 0.5}, {"count_thinning": 0.9}], ids=str)
def test_segments_stay_apart(reorder, choice):
    now, previous = np.arange(4, 14), np.arange(20, 30)
    row = np.concatenate([[CLS], now, [SEP], previous, np.zeros(3, dtype=int)])[None]
    batch = read(in_memory(row, np.where(row >= 4, 2, 0), [[20, 20]]))
    changed = augment(batch, reorder, key=0, **choice)
    assert well_formed(changed)
    kept = changed["token_ids"].tolist()
    sep = kept.index(SEP)
    assert 0 < len(kept)
    assert set(kept[1:sep]) <= set(now.tolist())
    assert set(kept[sep + 1 :]) <= set(previous.tolist())
    assert changed["library_size"].shape == (1, 2)


def test_a_cell_without_genes_survives(reorder):
    batch = read(in_memory([[CLS, PAD]], np.zeros((1, 2)), np.ones((1, 1))))
    changed = augment(batch, reorder, key=0, token_dropout=0.5, count_thinning=0.5)
    assert changed["token_ids"].tolist() == [CLS]


def test_no_cells_stay_no_cells(cells, reorder):
    none = read(cells, [])
    changed = augment(none, reorder, key=0, token_dropout=0.5, count_thinning=0.5)
    assert len(changed["token_ids"]) == len(changed["labels"]) == 0


def test_the_key_decides(batch, reorder):
    rows = [
        augment(batch, reorder, key=key, token_dropout=0.3)["token_ids"].tolist()
        for key in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("choice", [{"token_dropout": 0.3}, {"count_thinning": 0.7}], ids=str)
def test_a_cell_is_changed_the_same_way_in_any_company(cells, reorder, choice):
    together = augment(read(cells), reorder, key=5, **choice)
    for rows in ([4], [2, 0, 5]):
        apart = augment(read(cells, rows), reorder, key=5, **choice)
        for name in ("token_ids", "counts"):
            expected = torch.cat([rows_of(together, name)[row] for row in rows])
            assert torch.equal(apart[name], expected)
        assert torch.equal(apart["library_size"], together["library_size"][rows])


def test_every_array_of_the_tokenizer_keeps_to_its_tokens(cells, reorder):
    marks = np.where(cells.arrays["token_ids"] == PAD, 0, 3 * cells.arrays["token_ids"] + 1)
    more = EncodedCells(
        {**cells.arrays, "marks": marks.astype(np.int32)},
        cells.lengths, cells.library_size, cells.labels, cells.conditions,
    )  # fmt: skip
    changed = augment(read(more), reorder, key=2, token_dropout=0.3, count_thinning=0.7)
    assert well_formed(changed)
    assert torch.equal(changed["marks"], 3 * changed["token_ids"] + 1)
