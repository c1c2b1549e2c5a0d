"""The adversary: gradients against differences of numpy's loss, and a batch that it removes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from configs.base import ConfigError
from models.network import Encoded
from models.objectives.cell_value import CellValueConfig
from models.objectives.classify import ClassifyConfig
from models.objectives.condition_adversary import ConditionAdversaryConfig
from tests.made_up import learner
from tests.value_cells import CONFIG, N_GENES, SIZES, cells_of, pairs, train

ADVERSARY = ConditionAdversaryConfig(condition="batch")
CODES = np.array([0, 1, -1, 1, 0, -1])
KNOWN = CODES >= 0


def loss_by_numpy(x: np.ndarray, weights: list[np.ndarray]) -> float:
    """Return the summed cross-entropy of linear, leaky ReLU, layer norm, twice, and linear."""
    *hidden, last, bias = weights
    for i in range(0, len(hidden), 4):
        weight, shift, norm_scale, norm_shift = hidden[i : i + 4]
        x = x @ weight.T + shift
        x = np.where(x > 0, x, 0.01 * x)
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        x = x * norm_scale + norm_shift
    logits = x @ last.T + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[KNOWN, CODES[KNOWN]].sum()


def slope(of: np.ndarray, loss) -> np.ndarray:
    """Return the gradient of ``loss()`` by the numbers of an array, from central differences."""
    found = np.empty_like(of)
    for place in np.ndindex(of.shape):
        kept, ends = of[place], []
        for step in (1e-6, -1e-6):
            of[place] = kept + step
            ends.append(loss())
        of[place] = kept
        found[place] = (ends[0] - ends[1]) / 2e-6
    return found


def test_the_adversary_descends_and_what_it_looks_at_ascends():
    torch.manual_seed(0)
    head = learner(CONFIG, [ADVERSARY], **SIZES).heads["condition_adversary"]
    x = torch.randn(6, 16, requires_grad=True)
    losses = ADVERSARY.loss(Encoded(x), head, {"conditions": torch.from_numpy(CODES)[:, None]})
    assert not losses[~KNOWN].any()
    losses.sum().backward()
    weights = [p.detach().double().numpy().copy() for p in head.parameters()]
    cells = x.detach().double().numpy().copy()
    assert losses.sum().item() == pytest.approx(loss_by_numpy(cells, weights), rel=1e-5)

    def loss():
        return loss_by_numpy(cells, weights)

    np.testing.assert_allclose(x.grad, -slope(cells, loss), atol=1e-5)
    assert x.grad[KNOWN].abs().amax(dim=1).min() > 1e-3
    for parameter, weight in zip(head.parameters(), weights, strict=True):
        np.testing.assert_allclose(parameter.grad, slope(weight, loss), atol=1e-5)


def test_the_network_learns_types_and_unlearns_the_condition_by_its_weight(rng):
    torch.manual_seed(0)
    batch = pairs(rng, 8) | {"conditions": torch.tensor([0, 1] * 4)[:, None]}
    model = learner(CONFIG, [ClassifyConfig(), ADVERSARY], **SIZES)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradients(of: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(of, parameters, allow_unused=True, materialize_grads=True)
        return dict(zip(names, found, strict=True))

    losses = model(batch)
    weights = torch.tensor([1.0, 0.3])
    together = gradients((losses * weights).sum())
    types = gradients(model(batch)[:, 0].sum())
    embedding, head = model.network(batch).cell_embedding, model.heads["condition_adversary"]
    logits = head.layers(embedding)  # not reversed
    plain = gradients(torch.nn.functional.cross_entropy(
        logits, batch["conditions"][:, 0], reduction="sum"
    ))  # fmt: skip
    for name in names:
        sign = 1 if name.startswith("heads.") else -1
        expected = types[name] + 0.3 * sign * plain[name]
        torch.testing.assert_close(together[name], expected, atol=1e-5, rtol=1e-4)


def test_known_conditions_are_scored_and_no_score_is_a_loss_that_chooses_the_epoch():
    torch.manual_seed(0)
    head = learner(CONFIG, [ADVERSARY], **SIZES).heads["condition_adversary"]
    x, batch = torch.randn(6, 16), {"conditions": torch.from_numpy(CODES)[:, None]}
    with torch.no_grad():
        found = {k: v.numpy() for k, v in ADVERSARY.predict(Encoded(x), head, batch).items()}
        logits = head.layers(x).numpy()[KNOWN]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert ADVERSARY.score(found, None) == {
        "condition_adversary_accuracy": (logits.argmax(axis=1) == CODES[KNOWN]).mean(),
        "condition_adversary_cross_entropy": pytest.approx(
            -log_p[range(4), CODES[KNOWN]].mean(), rel=1e-5
        ),
    }
    unknown = found | {"condition_adversary_code": np.full(6, -1)}
    assert ADVERSARY.score(unknown, None) == {}


def test_a_condition_that_was_not_encoded_cannot_be_removed():
    with pytest.raises(ConfigError, match="'donor'.*condition_keys: \\['batch'\\]"):
        learner(CONFIG, [ConditionAdversaryConfig(condition="donor")], **SIZES)


def batches_and_types(rng: np.random.Generator, n_cells: int) -> dict:
    """Make cells of two types, by the first four genes, and two batches, by all the others."""
    labels, batches = rng.integers(0, 2, (2, n_cells))
    genes = np.tile(np.arange(N_GENES), (n_cells, 1))
    values = rng.integers(3, 9, (n_cells, N_GENES))
    values[:, :4] += np.where(labels, 2, -2)[:, None]
    values[:, 4:] += np.where(batches, 2, -2)[:, None]
    return cells_of(genes, values, labels, batches)


def test_a_batch_is_removed_from_the_embedding_and_the_types_stay():
    # All values are to be told from the embedding, so that by itself it keeps the batch.
    kept, new, found = (
        CellValueConfig(weight=0.1),
        batches_and_types(np.random.default_rng(2), 400),
        {},
    )
    for more in ([], [ADVERSARY]):
        torch.manual_seed(1)
        model = learner(CONFIG, [ClassifyConfig(), kept, *more], **SIZES)
        rng = np.random.default_rng(2)
        train(model, lambda rng=rng: batches_and_types(rng, 128), n_steps=100, lr=1e-2)
        with torch.no_grad():
            x = model.eval()(new, predict=())["embeddings"].numpy()
        for codes in (new["labels"].numpy(), new["conditions"][:, 0].numpy()):
            probe = LogisticRegression(max_iter=1000).fit(x[:200], codes[:200])
            found.setdefault(len(more), []).append(probe.score(x[200:], codes[200:]))
    (types_without, batch_without), (types, batch) = found.values()
    assert batch_without > 0.8
    assert batch < 0.6
    assert min(types_without, types) > 0.97
