import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from configs.base import ConfigError
from dataset.batches import Batch
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from models.network import TrainCells
from models.rank_transformer import (
    RankTransformer,
    RankTransformerConfig,
    highest_ranks,
    rank_positions,
    segments_of,
)
from tests.made_up import N_GENES, N_TOKENS, facts, network, ragged

POSITIONS = ("none", "learned", "sinusoidal")
CHOICES = [
    {"rank_position": position, "value_embedding": value, "cls_init": cls}
    for position, value, cls in itertools.product(
        POSITIONS, ("none", "mlp"), ("learned", "expression")
    )
]


def build(n_segments: int = 1, **fields) -> RankTransformer:
    torch.manual_seed(0)
    config = RankTransformerConfig(d_model=16, n_heads=2, gene_init="random", **fields)
    return network(
        config,
        n_vocabulary=N_SPECIALS + N_GENES,
        row_length=n_segments * N_TOKENS,
        n_segments=n_segments,
    ).eval()


def permuted(rows: dict, columns: torch.Tensor) -> Batch:
    """Reorder the genes of the first cell, which fills its row."""
    changed = {name: value.clone() for name, value in rows.items()}
    for name in ("token_ids", "counts"):
        changed[name][0] = rows[name][0, columns]
    return ragged(changed)


def padded_forward(model: RankTransformer, rows: dict, *, mask: bool = True) -> torch.Tensor:
    """Embed cells over padded rows, every row in every layer, attention as a formula."""
    ids, d = rows["token_ids"], model.config.d_model
    half = (ids == SEP).cumsum(1)
    index = torch.arange(ids.shape[1]).expand_as(ids)
    ranks = index - torch.where(ids == SEP, index, 0).cummax(1).values
    expression = torch.log1p(1e4 * rows["counts"] / rows["library_size"].gather(1, half))
    genes = model.gene_embedding(ids)
    x = genes + model.position_embedding(ranks) + model.segment_embedding(half)
    x = x + model.value_embedding(expression[..., None]) * (ids >= N_SPECIALS)[..., None]
    for segment, opening in enumerate((CLS, SEP)):
        total = (genes * (expression * (half == segment))[..., None]).sum(1)
        x = x + model.expression_norm(total)[:, None] * (ids == opening)[..., None]
    for block in model.encoder.blocks:
        attention, z = block.attention, block.norm_attention(x)
        q, k, v = (
            y.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for y in (attention.to_q(z), *attention.to_kv(z).chunk(2, dim=-1))
        )
        scores = q @ k.transpose(-1, -2) / (d / attention.n_heads) ** 0.5
        if mask:
            scores = scores.masked_fill((ids == PAD)[:, None, None], -torch.inf)
        x = x + attention.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.norm_feed_forward(x))
    return model.encoder.norm(x[:, 0])


def test_a_ragged_batch_gives_what_padded_rows_give(rows_of_two, two_segments):
    model = build(2, value_embedding="mlp", n_layers=3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    packed, padded = model(two_segments).cell_embedding, padded_forward(model, rows_of_two)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    assert (packed - padded_forward(model, rows_of_two, mask=False)).abs().max() > 1e-2
    names, parameters = zip(*model.named_parameters(), strict=True)
    for name, a, b in zip(
        names,
        torch.autograd.grad(packed.pow(3).sum(), parameters),
        torch.autograd.grad(padded.pow(3).sum(), parameters),
        strict=True,
    ):
        if not name.endswith("to_kv.bias"):  # half of it is 0 but for rounding
            assert (a - b).norm() <= 1e-5 * b.norm(), name
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("n_segments", [1, 2])
def test_a_batch_without_cells_has_gradients_of_zero(rows, rows_of_two, n_segments):
    # A process whose share of the last batch is empty takes part in the update all the same.
    model = build(n_segments, value_embedding="mlp", context_genes=4).train()
    output = model(ragged(rows if n_segments == 1 else rows_of_two, []))
    assert output.cell_embedding.shape == (0, 16)
    output.cell_embedding.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_order_of_genes_matters_with_rank_positions_only(rows, batch, choice):
    model = build(**choice)
    if model.position_embedding is not None:  # they start small, and attention averages them
        torch.nn.init.normal_(model.position_embedding.weight)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(12)])
    moved = model(permuted(rows, order)).cell_embedding - model(batch).cell_embedding
    if choice["rank_position"] == "none":
        assert moved.abs().max() < 1e-5
    else:
        assert moved[0].abs().max() > 1e-4
    assert moved[1:].abs().max() < 1e-5


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("n_segments", [1, 2])
def test_gradient_reaches_every_parameter(batch, two_segments, choice, n_segments):
    model = build(n_segments, **choice)
    output = model(batch if n_segments == 1 else two_segments)
    output.cell_embedding.pow(3).sum().backward()  # squares of a normed row add up to a constant
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("to_kv.bias"):  # softmax does not feel a shift of all keys
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("context_genes", [None, 4])
@pytest.mark.parametrize("n_segments", [1, 2])
def test_a_cell_does_not_depend_on_the_others(rows, rows_of_two, n_segments, context_genes):
    rows = rows if n_segments == 1 else rows_of_two
    model = build(n_segments, value_embedding="mlp", context_genes=context_genes)
    together = model(ragged(rows)).cell_embedding
    alone = torch.cat([model(ragged(rows, [i])).cell_embedding for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    mixed = model(ragged(rows, [3, 0, 4])).cell_embedding
    torch.testing.assert_close(mixed, together[[3, 0, 4]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[-1]], ids=str)
def test_doubling_a_cells_counts_changes_nothing(batch, choice):
    model = build(**choice)
    doubled = batch | {"counts": 2 * batch["counts"], "library_size": 2 * batch["library_size"]}
    torch.testing.assert_close(model(doubled).cell_embedding, model(batch).cell_embedding)


@pytest.mark.parametrize(
    ("choice", "sees_counts"),
    [
        ({"value_embedding": "none", "cls_init": "learned"}, False),
        ({"value_embedding": "mlp", "cls_init": "learned"}, True),
        ({"value_embedding": "none", "cls_init": "expression"}, True),
    ],
    ids=str,
)
def test_counts_are_an_input_when_the_config_says_so(batch, choice, sees_counts):
    model = build(**choice)
    other = batch | {"counts": torch.where(batch["counts"] > 0, 60 - batch["counts"], 0)}
    moved = (model(other).cell_embedding - model(batch).cell_embedding).abs().max()
    assert (moved > 1e-5) == sees_counts


def test_ranks_restart_in_the_second_segment():
    token_ids = torch.tensor([CLS, 9, 8, 7, SEP, 6, 5, CLS, 9, SEP, 6])
    assert rank_positions(token_ids).tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1]
    assert segments_of(token_ids).tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_segments_are_told_apart(rows_of_two, two_segments, choice):
    model = build(2, **choice)
    swapped = {name: value.clone() for name, value in rows_of_two.items()}
    row, cell_counts = rows_of_two["token_ids"][0], rows_of_two["counts"][0]
    sep = int((row == SEP).nonzero())
    end = int((row != PAD).sum())
    order = [0, *range(sep + 1, end), sep, *range(1, sep), *range(end, len(row))]
    swapped["token_ids"][0], swapped["counts"][0] = row[order], cell_counts[order]
    swapped["library_size"][0] = rows_of_two["library_size"][0].flip(0)
    moved = (model(ragged(swapped)).cell_embedding - model(two_segments).cell_embedding).abs()
    assert moved[0].max() > 1e-4
    assert moved[1:].max() < 1e-5


def test_cls_starts_from_the_expression_weighted_genes(rows, batch):
    model = build(rank_position="none", cls_init="expression")
    embedded, cells, _ = model.embed(batch)
    genes = model.gene_embedding.weight
    cell = 2
    total = torch.zeros(16)
    for token, count in zip(rows["token_ids"][cell], rows["counts"][cell], strict=True):
        total += torch.log1p(count * 1e4 / rows["library_size"][cell, 0]) * genes[token]
    expected = genes[CLS] + torch.nn.functional.layer_norm(total, (16,))
    first = int(cells.first[cell])
    torch.testing.assert_close(embedded[first], expected)
    torch.testing.assert_close(embedded[first + 1], genes[rows["token_ids"][cell, 1]])
    assert cells.lengths == [13, 10, 6, 3, 1]


def test_only_the_highest_ranks_enter_the_blocks(rows, batch, rows_of_two, two_segments):
    # Without the sum of expression, which is over the whole row, cutting the row is the same.
    model, short = build(cls_init="learned"), build(cls_init="learned", context_genes=4)
    short.load_state_dict(
        {k: v[:5] if "position" in k else v for k, v in model.state_dict().items()}
    )
    cut = ragged(rows | {k: rows[k][:, :5] for k in ("token_ids", "counts")})
    torch.testing.assert_close(short(batch).cell_embedding, model(cut).cell_embedding)
    kept = highest_ranks(batch, 4, n_segments=1)
    assert kept["lengths"] == cut["lengths"]
    for name in ("token_ids", "counts", "offsets"):
        assert torch.equal(kept[name], cut[name])

    kept = highest_ranks(two_segments, 4, n_segments=2)
    for before, after in zip(
        rows_of_two["token_ids"], kept["token_ids"].split(kept["lengths"]), strict=True
    ):
        sep = int((before == SEP).nonzero())
        expected = torch.cat([before[:sep][:5], before[sep:][:5]])
        assert after.tolist() == expected[expected != PAD].tolist()


def test_svd_start_is_fitted_on_what_it_is_given_and_leaves_special_tokens(rng, batch):
    counts = csr_matrix(rng.poisson(1.0, (40, N_GENES)))
    library_size = np.asarray(counts.sum(axis=1)).ravel()
    config = RankTransformerConfig(d_model=16, n_heads=2, gene_init="svd")
    model = build()
    before = model.gene_embedding.weight.detach().clone()
    train = TrainCells(lambda: (counts, library_size), lambda _: batch)
    config.start(model, train, np.random.default_rng(0))
    after = model.gene_embedding.weight.detach()
    assert torch.equal(after[:N_SPECIALS], before[:N_SPECIALS])
    assert not torch.equal(after[N_SPECIALS:], before[N_SPECIALS:])
    assert float(after[N_SPECIALS:].std()) == pytest.approx(
        float(before[N_SPECIALS:].std()), rel=0.2
    )


def test_a_random_start_does_not_read_the_expression():
    def read(*_):
        raise AssertionError("read for nothing")

    config = RankTransformerConfig(gene_init="random", cls_init="learned")
    config.start(build(cls_init="learned"), TrainCells(read, read), np.random.default_rng(0))


def test_the_expression_given_to_cls_starts_half_whitened(batch):
    model = build(rank_position="none", cls_init="expression")
    model.gene_embedding.weight.data[N_SPECIALS:] *= torch.logspace(0, -2, 16)  # as an SVD falls
    sums = model.sum_expression(batch, segment=0)
    before = torch.nn.functional.layer_norm(sums, (16,)).std(dim=0)
    model.scale_expression(batch)
    embedded, cells, _ = model.embed(batch)
    given = embedded[cells.first] - model.gene_embedding.weight[CLS]
    torch.testing.assert_close(given.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    variance = given.var(dim=0)
    torch.testing.assert_close(variance.mean(), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, before / before.mean(), atol=1e-4, rtol=1e-4)
    build(cls_init="learned").scale_expression(batch)  # nothing to do


def test_the_largest_token_and_the_longest_row_fit(batch):
    # The last gene of the vocabulary has an embedding row, the last rank a position.
    full = {
        "token_ids": torch.tensor(
            [[CLS, *range(N_SPECIALS + N_GENES - 12, N_SPECIALS + N_GENES)]]
        ),
        "counts": torch.ones(1, N_TOKENS).long(),
        "library_size": torch.full((1, 1), 12.0),
    }
    assert build()(ragged(full)).cell_embedding.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 10, "n_heads": 4}, "d_model 10 is not divisible by n_heads 4"),
        ({"d_model": 7, "n_heads": 1, "rank_position": "sinusoidal"}, "even d_model"),
        ({"n_layer": 2}, "Extra inputs"),
        ({"rank_position": "rotary"}, "rank_position"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_impossible_configs_say_why(fields, message):
    with pytest.raises(ValidationError, match=message):
        RankTransformerConfig(**fields)


def test_the_config_says_whether_blocks_are_computed_again():
    assert build(checkpoint_activations=True).encoder.checkpoint_activations
    assert not build().encoder.checkpoint_activations


def test_head_width_may_be_chosen_freely():
    config = RankTransformerConfig(d_model=10, n_heads=4, d_head=3)
    model = config.build(facts(n_vocabulary=9, row_length=5))
    assert model.encoder.blocks[0].attention.to_q.out_features == 12


def test_the_first_layers_are_named_with_all_that_feeds_them():
    settings = {"d_model": 8, "n_heads": 2, "n_layers": 3, "value_embedding": "mlp"}
    built = network(RankTransformerConfig(**settings), n_segments=2)
    assert built.first_layers(0) == []
    names = {name for name, _ in built.named_parameters()}
    left = names - set(built.first_layers(2))
    assert left == {n for n in names if n.startswith(("encoder.blocks.2.", "encoder.norm."))}
    assert names - set(built.first_layers(3)) == {"encoder.norm.weight", "encoder.norm.bias"}
    with pytest.raises(ConfigError, match=r"frozen_layers: found 4; this network has 3 layers"):
        built.first_layers(4)
