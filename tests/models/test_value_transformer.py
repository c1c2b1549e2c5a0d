"""The value transformer and its value embeddings: what they see, and what they must not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs.base import ConfigError
from dataset.batches import keep_tokens
from dataset.vocabulary import N_SPECIALS
from models.objectives.base import with_original
from models.objectives.generate_values import GenerateValuesConfig
from models.value_embedding import HIDDEN, ValueEmbedding, hide_values
from models.value_transformer import ValueTransformerConfig
from tests.made_up import N_GENES, facts, learner, network, ragged
from tests.value_cells import cells_of

BINS, LOG = {"values": "bins", "n_bins": 11}, {"values": "log1p", "n_bins": 11}
SIZES = {"n_vocabulary": N_GENES + N_SPECIALS, "row_length": 13, "tokenizer": BINS}
DONORS = {"donor": ["a", "b", "c"]}
TARGETS = {"target": ["control", "gene3", "gene5+gene3"]}
CHOICES = [
    {"value_embedding": "mlp"},
    {"value_embedding": "bins"},
    {"value_embedding": "soft_bins", "cls_init": "expression"},
    {"value_embedding": "mlp", "conditions": ["donor"]},
    {"value_embedding": "mlp", "batch_norm_by": "donor", "cls_init": "learned"},
    {"value_embedding": "mlp", "context_genes": 5, "cls_init": "expression"},
    {"value_embedding": "mlp", "perturbation_key": "target"},
]


def build(**choice):
    torch.manual_seed(0)
    settings = {"cls_init": "learned"} | choice
    config = ValueTransformerConfig(d_model=16, n_heads=2, dropout=0.0, **settings)
    conditions = TARGETS if config.perturbation_key else DONORS
    return network(config, **SIZES, conditions=conditions).eval()


def with_values(batch: dict) -> dict:
    """Give each gene a bin, and the cells donors, of which the last is unknown."""
    values = torch.where(batch["counts"] > 0, 1 + batch["counts"].long() % 10, 0)
    codes = torch.tensor([0, 1, 2, 1, -1])[batch["cell_index"]]
    return batch | {"values": values, "conditions": codes[:, None]}


@pytest.fixture
def valued(batch):
    return with_values(batch)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_cell_depends_on_its_values_and_on_no_other_cell(rows, valued, choice):
    model = build(**choice)
    together = model(valued, tokens=True)
    for cell in range(5):
        alone = with_values(ragged(rows, [cell]))
        torch.testing.assert_close(
            model(alone).cell_embedding[0], together.cell_embedding[cell], atol=1e-5, rtol=1e-5
        )
    n_first = valued["lengths"][0]
    changed = valued | {"values": valued["values"].clone()}
    changed["values"][1:n_first] = 11 - changed["values"][1:n_first]
    moved = (model(changed).cell_embedding - together.cell_embedding).abs().amax(dim=1)
    assert moved[0] > 1e-4
    assert moved[1:].max() < 1e-6
    n_read = model.config.context_genes
    n_states = [n if n_read is None else min(n, 1 + n_read) for n in valued["lengths"]]
    assert together.token_states.shape == (sum(n_states), 16)


def test_genes_are_a_set(rows, valued):
    model = build()
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(12)])
    permuted = {k: rows[k][:, order] if rows[k].shape[1] > 1 else rows[k] for k in rows}
    found = model(with_values(ragged(permuted, [0]))).cell_embedding
    torch.testing.assert_close(found, model(valued).cell_embedding[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_hidden_is_not_seen(valued, choice):
    model = build(**choice, **({} if "cls_init" in choice else {"cls_init": "expression"}))
    is_hidden = (valued["counts"] > 0) & (torch.arange(len(valued["counts"])) % 3 == 1)
    hidden = hide_values(valued, is_hidden)
    other = valued | {
        "values": torch.where(is_hidden, 11 - valued["values"], valued["values"]),
        "counts": torch.where(is_hidden, 60 - valued["counts"], valued["counts"]),
    }
    assert not torch.equal(model(other).cell_embedding, model(valued).cell_embedding)
    assert torch.equal(
        model(hide_values(other, is_hidden)).cell_embedding, model(hidden).cell_embedding
    )
    assert (model(hidden).cell_embedding - model(valued).cell_embedding).abs().max() > 1e-4


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_gradient_reaches_every_parameter(valued, choice):
    is_hidden = (valued["counts"] > 0) & (torch.arange(len(valued["counts"])) % 3 == 1)
    model = build(**choice)
    model(hide_values(valued, is_hidden)).cell_embedding.pow(3).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("to_kv.bias"):  # softmax does not feel a shift of all keys
            assert parameter.grad.abs().sum() > 0, name


def test_value_embeddings_are_their_formulas():
    torch.manual_seed(0)
    values = torch.tensor([0.0, 3.0, 10.0, HIDDEN])
    made = {kind: ValueEmbedding(kind, 8, facts(tokenizer=BINS)) for kind in ("mlp", "bins")}
    soft = ValueEmbedding("soft_bins", 8, facts(tokenizer=LOG))
    assert soft.scale == pytest.approx(np.log1p(1e4))
    with torch.no_grad():
        found = made["bins"](values)
        assert torch.equal(found[:3], made["bins"].table.weight[[0, 3, 10]])
        first, _, last = made["mlp"].layers
        x = values[:3, None] / 10
        expected = F.gelu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
        torch.testing.assert_close(made["mlp"](values)[:3], expected)
        x = values[:3, None] / soft.scale
        x = x @ soft.to_first.weight.T + soft.to_first.bias
        x = torch.where(x > 0, x, 0.01 * x)
        x = x @ soft.to_weights.weight.T + soft.to_weights.bias + x
        weights = x.exp() / x.exp().sum(dim=1, keepdim=True)
        torch.testing.assert_close(soft(values)[:3], weights @ soft.table.weight)
        for module in (*made.values(), soft):
            assert torch.equal(module(values)[3], module.hidden.weight[0])


def highest_counts(valued: dict, n_genes: int) -> list[int]:
    """Return the tokens of the highest counts of each cell, behind its <cls>, by plain Python."""
    counts, ids, found = valued["counts"].tolist(), valued["token_ids"].tolist(), []
    for a, b in pairwise(valued["offsets"].tolist()):
        found += [a, *sorted(range(a + 1, b), key=lambda i: (-counts[i], ids[i]))[:n_genes]]
    return found


def test_the_blocks_read_the_genes_of_the_highest_counts_and_cls_sums_them_all(valued):
    read, whole = build(context_genes=5, cls_init="expression"), build(cls_init="expression")
    states = read(valued, tokens=True)
    kept = highest_counts(valued, 5)
    assert states.token_index.tolist() == kept
    assert states.token_states.shape == (len(kept), 16)
    torch.testing.assert_close(states.cell_embedding, read(valued).cell_embedding)
    # The same cells without the other genes, but for <cls>: it starts with the sum over all.
    is_kept = torch.zeros(len(valued["counts"]), dtype=torch.bool)
    is_kept[kept] = True
    top = keep_tokens(valued, is_kept)
    alike = build()
    alike.load_state_dict(whole.state_dict(), strict=False)
    plain, _, _ = alike.embed(top)
    first = top["offsets"][:-1].long()
    plain[first] += whole.expression_norm(whole.sum_expression(valued, segment=0))
    expected = alike.encoder(plain, alike.cells_of(top))[first]
    torch.testing.assert_close(states.cell_embedding, expected, atol=1e-5, rtol=1e-5)
    assert (expected - whole(valued).cell_embedding).abs().max() > 1e-3


def test_a_context_as_large_as_the_row_changes_nothing(valued):
    read, whole = build(context_genes=12), build()
    torch.testing.assert_close(
        read(valued).cell_embedding, whole(valued).cell_embedding, atol=1e-5, rtol=1e-5
    )


def test_a_hidden_gene_keeps_its_place_in_the_context(valued):
    model = build(context_genes=5)
    kept = highest_counts(valued, 5)
    is_hidden = torch.zeros(len(valued["counts"]), dtype=torch.bool)
    is_hidden[kept[1]] = True  # the highest count of the first cell
    hidden = hide_values(with_original(valued), is_hidden)
    assert model(hidden, tokens=True).token_index.sort().values.tolist() == sorted(kept)


def test_a_perturbed_gene_must_not_be_left_out_of_the_context():
    with pytest.raises(ValueError, match="may not be among these; say context_genes: null"):
        ValueTransformerConfig(perturbation_key="target", context_genes=5)


def test_generation_needs_the_whole_row():
    config = ValueTransformerConfig(d_model=16, n_heads=2, context_genes=5)
    with pytest.raises(ConfigError, match=r"every gene of a row.*read 5 .*context_genes=null"):
        learner(config, [GenerateValuesConfig()], tokenizer=BINS)


def test_conditions_are_added_to_every_token_and_unknown_ones_add_nothing(valued):
    model = build(conditions=["donor"])
    table = model.condition_embeddings[0].weight
    assert table.shape == (4, 16)
    plain, _, _ = model.embed(valued | {"conditions": torch.full((5, 1), -1)})
    told, _, _ = model.embed(valued)
    of_cell = torch.cat([torch.full((n,), i) for i, n in enumerate(valued["lengths"])])
    codes = torch.tensor([1, 2, 3, 2, 0])[of_cell]
    torch.testing.assert_close(told - plain, table[codes], atol=1e-6, rtol=1e-4)
    assert not table[0].any()


def test_the_tokens_of_perturbed_genes_are_told_and_no_others(valued):
    model = build(perturbation_key="target")
    flag = model.perturbation_embedding.weight[0]
    hit = {0: [], 1: [3], 2: [5, 3], -1: []}
    codes = valued["conditions"][:, 0]
    assert set(codes.tolist()) == set(hit)
    none, _, _ = model.embed(valued | {"conditions": torch.full((5, 1), -1)})
    told, _, _ = model.embed(valued)
    of_cell = torch.cat([torch.full((n,), i) for i, n in enumerate(valued["lengths"])])
    is_hit = [
        token - N_SPECIALS in hit[int(codes[cell])]
        for token, cell in zip(valued["token_ids"].tolist(), of_cell.tolist(), strict=True)
    ]
    assert any(is_hit)
    torch.testing.assert_close(told - none, torch.tensor(is_hit)[:, None] * flag)
    # In training too: what the network is not told of a perturbation is that there is none.
    config = ValueTransformerConfig(
        d_model=16, n_heads=2, dropout=0.9, cls_init="learned", perturbation_key="target"
    )
    trained = network(config, **SIZES, conditions=TARGETS).train()
    none, _, _ = trained.embed(valued | {"conditions": torch.full((5, 1), -1)})
    is_moved = (trained.embed(valued)[0] - none).abs().amax(dim=1) > 0
    assert is_moved.tolist() == is_hit


def test_which_gene_is_perturbed_is_learned_where_only_its_flag_tells(rng):
    """Half of the genes, when hit, make one class, the others the other; values say nothing."""
    names = [f"gene{i}" for i in range(N_GENES)]
    codes, n = rng.integers(0, N_GENES, 300), 300
    genes, values = np.tile(np.arange(N_GENES), (n, 1)), rng.integers(1, 11, (n, N_GENES))
    made = cells_of(genes, values, codes % 2, codes)
    scores = {}
    for key in ("target", None):
        torch.manual_seed(0)
        config = ValueTransformerConfig(
            d_model=32, n_heads=2, n_layers=1, dropout=0.0, cls_init="learned",
            perturbation_key=key,
        )  # fmt: skip
        sizes = {**SIZES, "n_classes": 2, "row_length": N_GENES + 1}
        model = learner(config, conditions={"target": names}, **sizes)
        step = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(120):
            step.zero_grad()
            model(made).mean().backward()
            step.step()
        predicted = model.eval()(made, predict={"classify"})["probabilities"].argmax(dim=1)
        scores[key] = (predicted == made["labels"]).float().mean().item()
    assert scores["target"] > 0.95
    assert scores[None] < 0.85


def test_training_forgets_the_conditions_of_some_cells(valued):
    config = ValueTransformerConfig(
        d_model=16, n_heads=2, dropout=0.4, cls_init="learned", conditions=["donor"]
    )
    model = network(config, **SIZES, conditions=DONORS)
    many = {"conditions": torch.ones(2000, 1, dtype=torch.long)}

    def embed() -> torch.Tensor:
        return model.embed_conditions(model.forget_conditions(many))

    model.train()
    assert (embed() == 0).all(dim=1).float().mean() == pytest.approx(0.4, abs=0.05)
    model.eval()
    assert (embed() != 0).any(dim=1).all()


@pytest.mark.parametrize(
    ("settings", "tokenizer", "message"),
    [
        ({}, {"kind": "rank"}, "tokens need a value each.*'rank'"),
        ({"value_embedding": "bins"}, LOG, "continuous"),
        ({"conditions": ["age"]}, BINS, "condition_keys: \\['donor'\\]"),
        ({"batch_norm_by": "age", "cls_init": "learned"}, BINS, "age.*keys: \\['donor'\\]"),
        ({"perturbation_key": "target"}, BINS, "target.*keys: \\['donor'\\]"),
        ({"perturbation_key": "donor"}, BINS, "'donor', such as 'a', 'b', 'c', names a gene"),
    ],
)
def test_data_that_do_not_fit_are_refused(settings, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        learner(ValueTransformerConfig(**settings), conditions=DONORS, tokenizer=tokenizer)
