"""The generative mask against a quadratic reference, and what is predicted under it."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange

from configs.base import ConfigError
from dataset.vocabulary import CLS
from models import packed_attention
from models.attention_masks import generative_mask
from models.network import Encoded
from models.objectives.generate_values import UNKNOWN_SHARES, GenerateValuesConfig
from models.objectives.hidden_values import TARGET
from models.objectives.masked_value import MaskedValueConfig
from models.packing import cells_of as packed
from models.rank_transformer import RankTransformerConfig
from models.self_attention import SelfAttention
from models.value_embedding import HIDDEN, IS_KNOWN
from tests.made_up import learner
from tests.value_cells import CONFIG, N_GENES, SIZES, cells_of, pairs, train
from training.counter_random import draw_for

DEEP = CONFIG.model_copy(update={"n_layers": 3, "cls_init": "expression"})


def test_the_mask_says_known_ones_and_itself():
    found = generative_mask(torch.tensor([[True, False, True, False]]))
    assert found[0, 0].int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("lengths", [[7, 4, 1], [4, 4, 4], [3, 3, 6]])
def test_packed_attention_is_the_quadratic_formula(lengths, first_only):
    torch.manual_seed(0)
    attention, x = SelfAttention(12, 3, 4), torch.randn(12, 12)
    is_known = torch.rand(12) < 0.5
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    is_known[offsets[:-1]] = True
    cell = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = torch.zeros(12, 12, dtype=torch.bool)
    for query in range(12):
        for key in range(12):
            same = cell[query] == cell[key]
            allowed[query, key] = same and (is_known[key] or query == key)
    q, (k, v) = attention.to_q(x), attention.to_kv(x).chunk(2, dim=-1)
    q, k, v = (rearrange(z, "n (h e) -> h n e", h=3) for z in (q, k, v))
    scores = (q @ k.transpose(1, 2) / math.sqrt(4)).masked_fill(~allowed, -math.inf)
    expected = attention.to_out(rearrange(scores.softmax(-1) @ v, "h n e -> n (h e)"))
    cells = packed(lengths, is_known=is_known)
    found = attention(x, cells, first_only=first_only)
    expected = expected[cells.first] if first_only else expected
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    unmasked = attention(x, packed(lengths), first_only=first_only)
    assert (unmasked - found).abs().max() > 1e-3


def test_the_flash_kernel_is_not_asked_under_a_mask(monkeypatch):
    attention, x = SelfAttention(12, 3, 4), torch.randn(5, 12)
    is_known = torch.tensor([True, False, True, False, True])
    expected = attention(x, packed([5], is_known=is_known))
    monkeypatch.setattr(packed_attention, "varlen_supports", lambda *_: True)
    monkeypatch.setattr(packed_attention, "varlen_attn", None)
    torch.testing.assert_close(attention(x, packed([5], is_known=is_known)), expected)


def cells_of_several_lengths(rng) -> dict:
    """Make cells of 9, 9, 6 and 0 genes, in one batch."""
    parts = [
        cells_of(
            np.array([rng.permutation(N_GENES)[:n]]), rng.integers(1, 11, (1, n)).astype(np.int64)
        )
        for n in (9, 9, 6, 0)
    ]
    joined = {k: torch.cat([p[k] for p in parts]) for k in ("token_ids", "values", "counts")}
    lengths = [n for part in parts for n in part["lengths"]]
    per_cell = {k: torch.cat([p[k] for p in parts])
                for k in ("library_size", "labels", "conditions")}  # fmt: skip
    offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return joined | per_cell | {
        "lengths": lengths, "offsets": offsets, "cell_index": torch.arange(4),
    }  # fmt: skip


def test_no_unknown_value_leaks_and_no_unknown_gene_changes_another(rng):
    torch.manual_seed(0)
    model = learner(DEEP, [GenerateValuesConfig()], **SIZES).eval()
    batch = cells_of_several_lengths(rng)
    hidden = model.hide(batch, draw_for(batch, 4))
    is_unknown = ~hidden[IS_KNOWN]
    assert 0 < is_unknown.sum() < (batch["token_ids"] != CLS).sum()
    other = batch | {
        "values": torch.where(is_unknown, 11 - batch["values"], batch["values"]),
        "counts": torch.where(is_unknown, 40 - batch["counts"], batch["counts"]),
    }
    with torch.no_grad():
        expected = model.network(hidden, tokens=True)
        found = model.network(model.hide(other, draw_for(other, 4)), tokens=True)
        # Another unknown gene in place of one: only its own state is another's.
        swapped = hidden | {"token_ids": hidden["token_ids"].clone()}
        place = int(torch.nonzero(is_unknown)[0, 0])
        swapped["token_ids"][place] = 4 + (hidden["token_ids"][place] - 4 + 1) % N_GENES
        moved = model.network(swapped, tokens=True).token_states - expected.token_states
    for a, b in zip(expected, found, strict=True):
        assert a is b is None or torch.equal(a, b)
    moved = moved.abs().amax(dim=1)
    assert moved[place] > 1e-3
    moved[place] = 0
    assert moved.max() < 1e-6
    with torch.no_grad():  # a known gene changes all of its cell
        known = int(torch.nonzero(hidden[IS_KNOWN] & (batch["values"] > 0))[0, 0])
        swapped = hidden | {"values": hidden["values"].clone()}
        swapped["values"][known] = 11 - swapped["values"][known]
        moved = model.network(swapped, tokens=True).token_states - expected.token_states
    assert (moved[: batch["lengths"][0]].abs().amax(dim=1) > 1e-6).all()


def test_a_cell_prompt_is_all_that_is_known(rng):
    torch.manual_seed(0)
    model = learner(DEEP, [GenerateValuesConfig()], **SIZES).eval()
    head = model.heads["generate_values"]
    batch, embedding = cells_of_several_lengths(rng), torch.randn(4, 16)
    other = batch | {"values": 11 - batch["values"], "counts": 40 - batch["counts"]}
    with torch.no_grad():
        expected, found = (head.from_cell(embedding, b) for b in (batch, other))
        assert torch.equal(expected, found)
        embedding[0] = torch.randn(16)
        moved = (head.from_cell(embedding, batch) - expected).abs().amax(dim=1)
    assert (moved[: batch["lengths"][0]] > 1e-4).all()
    assert moved[batch["lengths"][0] :].max() < 1e-6


def test_the_unknown_share_is_drawn_for_each_cell(rng):
    batch = cells_of(np.tile(np.arange(N_GENES), (3000, 1)), np.full((3000, N_GENES), 5))
    hidden = GenerateValuesConfig().hide(batch, draw_for(batch, 1), None)
    n = (hidden[TARGET].view(3000, -1) >= 0).sum(dim=1).double()
    assert n.mean() / N_GENES == pytest.approx(np.mean(UNKNOWN_SHARES), abs=0.01)
    shares = np.array(UNKNOWN_SHARES)
    variance = N_GENES * (shares * (1 - shares)).mean() + (N_GENES * shares).var()
    assert float(n.var()) == pytest.approx(variance, rel=0.08)
    assert (hidden["values"][~hidden[IS_KNOWN]] == HIDDEN).all()
    assert not hidden["counts"][~hidden[IS_KNOWN]].any()


def test_the_loss_is_a_normal_likelihood_of_both_prompts(rng):
    torch.manual_seed(0)
    model = learner(DEEP, [GenerateValuesConfig()], **SIZES).eval()
    batch = cells_of_several_lengths(rng)
    hidden = model.hide(batch, draw_for(batch, 4))
    head = model.heads["generate_values"]
    with torch.no_grad():
        encoded = model.network(hidden, tokens=True)
        losses = model(hidden)[:, 0]
        states = (encoded.token_states, head.from_cell(encoded.cell_embedding, hidden))
    target, expected = hidden[TARGET] / 10, torch.zeros(4)
    for cell in range(4):
        here = range(int(batch["offsets"][cell]), int(batch["offsets"][cell + 1]))
        unknown = [token for token in here if target[token] >= 0]
        for of_prompt in states:
            for token in unknown:
                mean, log_variance = head.layers(of_prompt[token]).detach()
                normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
                constant = 0.5 * math.log(2 * math.pi)
                expected[cell] -= (normal.log_prob(target[token]) + constant) / len(unknown)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


def test_determined_values_are_generated_from_genes_and_from_the_cell(rng):
    """A pair's values add up to eleven; a gene without its partner cannot be known."""
    torch.manual_seed(0)
    model = learner(CONFIG, [GenerateValuesConfig()], **SIZES)
    train(model, lambda: pairs(rng, 128), n_steps=400, lr=1e-2)
    head, batch = model.eval().heads["generate_values"], pairs(rng, 200)
    is_gene = batch["token_ids"] != CLS
    position = torch.arange(7).repeat(200)
    # Known: the first three genes, one of each pair.
    asked = batch | {"values": torch.where(is_gene & (position > 3), HIDDEN, batch["values"])}
    by_round = [head.generate(asked, n_rounds) for n_rounds in (1, 3)]
    unknown = asked["values"] == HIDDEN
    for found in by_round:
        assert torch.equal(found[~unknown], asked["values"][~unknown].float())
        errors = (found[unknown] - batch["values"][unknown]).abs()
        assert errors.mean() < 1.0  # to guess the mean errs by 2.5
    # The first pair's two genes are both unknown: they are the last to be promoted.
    hard = batch | {"values": asked["values"].clone()}
    hard["values"][position == 1] = HIDDEN
    with torch.no_grad():
        seen = hard | {IS_KNOWN: hard["values"] != HIDDEN}
        _, log_variance = head(model.network(seen, tokens=True).token_states)
    sure = log_variance.view(200, 7)
    assert sure[:, [5, 6]].mean() < sure[:, [1, 4]].mean() - 0.05
    # From an embedding alone: what the head says of the cell prompt.
    nothing = batch | {"values": torch.where(is_gene, HIDDEN, batch["values"])}
    with torch.no_grad():
        embedding = model.network(batch).cell_embedding
        mean, _ = head(head.from_cell(embedding, batch))
    found = head.generate(nothing, 1, embedding)
    torch.testing.assert_close(found[is_gene], 10 * mean[is_gene].clamp(0, 1))


def test_in_each_round_the_surest_become_known():
    model = learner(CONFIG, [GenerateValuesConfig()], **SIZES).eval()
    head = model.heads["generate_values"]
    batch = cells_of(np.tile(np.arange(5), (2, 1)), np.full((2, 5), HIDDEN, dtype=np.int64))
    seen = []

    def network(asked, *, tokens):
        seen.append(asked["values"].clone())
        states = torch.zeros(12, 16)
        states[:, 0] = torch.arange(12)  # a token's own number
        return Encoded(states[:2], states)

    def layers(states):  # later tokens are the surer ones; the value follows from the number
        return torch.stack([states[:, 0] / 20, -states[:, 0] / 10], dim=1)

    head.tied = (network,)
    head.layers = torch.nn.Identity()
    head.layers.forward = layers
    found = head.generate(batch, 3)
    n_known = [(values.view(2, 6)[:, 1:] != HIDDEN).sum(dim=1).tolist() for values in seen]
    assert n_known == [[0, 0], [2, 2], [4, 4]]
    assert (seen[1].view(2, 6)[:, 4:] != HIDDEN).all()
    torch.testing.assert_close(
        found, torch.where(batch["token_ids"] == CLS, 0, torch.arange(12) / 2)
    )


def test_a_network_or_an_order_that_does_not_fit_is_refused(rng):
    config = RankTransformerConfig(rank_position="none")
    with pytest.raises(ConfigError, match="RankTransformer cannot be"):
        learner(config, [GenerateValuesConfig()], **SIZES)
    batch = pairs(rng, 2)
    model = learner(CONFIG, [MaskedValueConfig(), GenerateValuesConfig()], **SIZES)
    with pytest.raises(ConfigError, match="list generate_values first"):
        model.hide(batch, draw_for(batch, 0))
