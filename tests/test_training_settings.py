"""Every setting of training has its effect, and who may see which cells.

A small network is watched while it is trained: the batches that reach it, the gradients and rates
that reach its optimizer. What should have happened is worked out here a second time.
"""

import math
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dataset.store.encoded_folder import EncodedFolder
from models.baselines.majority import MajorityConfig
from tests.two_processes import load_script
from training import checkpoint
from training.baseline import fit_baseline
from training.config import TrainConfig
from training.distributed import Ranks
from training.results import score
from training.run_writer import RunWriter
from training.state import Training
from training.tracking import Tracker, read_metrics

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = {
    "kind": "rank_transformer", "d_model": 8, "n_layers": 1, "n_heads": 2, "d_feed_forward": 8,
    "context_genes": 8, "dropout": 0.0, "gene_init": "random", "cls_init": "learned",
}  # fmt: skip


@dataclass
class Seen:
    """What reached a network and its optimizer, in order."""

    learner: nn.Module | None = None
    training: list[dict] = field(default_factory=list)  # batches
    predicting: list[dict] = field(default_factory=list)
    dtypes: set[tuple[bool, torch.dtype]] = field(default_factory=set)  # training?, of a product
    rates: list[list[float]] = field(default_factory=list)  # of each update, by group
    norms: list[float] = field(default_factory=list)  # of the gradient that is used
    decays: dict[str, float] = field(default_factory=dict)  # by parameter
    points: list[dict] = field(default_factory=list)  # metrics.jsonl
    fitted: object = None

    def epochs(self, n_updates: int) -> list[list[int]]:
        """Places of the cells in the order they came, by epoch."""
        cells = [batch["cell_index"].tolist() for batch in self.training]
        starts = range(0, len(cells), n_updates)
        return [sum(cells[start : start + n_updates], []) for start in starts]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


@pytest.fixture(scope="module")
def data(encoded_folder) -> EncodedFolder:
    """Open the encoded cells, with fewer train cells of the later types than of the first."""
    data = EncodedFolder(encoded_folder)
    train = data.split("train")
    place = np.zeros(len(train), dtype=int)  # of each cell among those of its type
    for label in np.unique(train.labels):
        cells = train.labels == label
        place[cells] = np.arange(cells.sum())
    kept = np.flatnonzero(place % (1 + train.labels) == 0)
    kept = kept[: len(kept) // 24 * 24]  # whole updates
    of_cells = {
        name: np.asarray(getattr(train, name))[kept]
        for name in ("lengths", "labels", "rows", "library_size", "conditions")
    }
    arrays = {name: np.asarray(array)[kept] for name, array in train.arrays.items()}
    data._splits["train"] = replace(train, arrays=arrays, **of_cells)
    return data


@pytest.fixture
def make_config(tmp_path, encoded_folder):
    def make(**changes) -> TrainConfig:
        values: dict = {
            "name": "run",
            "data": str(encoded_folder),
            "runs_dir": str(tmp_path),
            "model": MODEL,
            "tracking": {"wandb": "disabled"},
            "device": "cpu",
        }
        changes["optim"] = {"max_epochs": 1, "batch_size": 24} | changes.get("optim", {})
        return TrainConfig.model_validate(values | changes)

    return make


@pytest.fixture
def fit(script, data, monkeypatch, make_config):
    """Return a function: settings -> what was seen of the whole training."""
    monkeypatch.setattr(script, "LOG_EVERY", 1)
    build_learner, make_optimizer = script.build_learner, script.make_optimizer

    def run(**changes) -> Seen:
        config, seen = make_config(**changes), Seen()

        def watch(module, inputs, output):
            (batch,) = inputs
            (seen.training if module.training else seen.predicting).append(dict(batch))

        def build(*arguments):
            learner = seen.learner = build_learner(*arguments)
            learner.network.register_forward_hook(watch)
            to_q = learner.network.encoder.blocks[0].attention.to_q
            to_q.register_forward_hook(
                lambda module, _, output: seen.dtypes.add((module.training, output.dtype))
            )
            return learner

        def make(learner, **settings):
            optimizer = make_optimizer(learner, **settings)
            names = {id(p): name for name, p in learner.named_parameters()}
            for group in optimizer.param_groups:
                seen.decays |= {names[id(p)]: group["weight_decay"] for p in group["params"]}

            def before(optimizer, *_):
                seen.rates.append([group["lr"] for group in optimizer.param_groups])
                gradients = [p.grad.flatten() for p in learner.parameters() if p.grad is not None]
                seen.norms.append(float(torch.cat(gradients).norm()))

            optimizer.register_step_pre_hook(before)
            return optimizer

        with monkeypatch.context() as patch:
            patch.setattr(script, "build_learner", build)
            patch.setattr(script, "make_optimizer", make)
            folder = RunWriter(config)
            with folder.open(data, writes=True):
                tracker = Tracker(folder.curves, config)
                seen.fitted = script.fit_network(config, data, folder, ALONE, tracker)
                seen.points = read_metrics(folder.curves)
                folder.checkpoint.unlink()
        return seen

    return run


def rows_are(batch: dict, split) -> bool:
    """Whether a batch holds the very rows of a split, at the places it says."""
    cells = batch["cell_index"].numpy()
    is_token = np.arange(split.arrays["token_ids"].shape[1]) < split.lengths[cells, None]
    return batch["lengths"] == split.lengths[cells].tolist() and (
        np.array_equal(batch["token_ids"], split.arrays["token_ids"][cells][is_token])
        and np.array_equal(batch["counts"], split.arrays["counts"][cells][is_token])
        and np.array_equal(batch["labels"], split.labels[cells])
    )


def n_updates(data: EncodedFolder, batch_size: int = 24) -> int:
    return math.ceil(len(data.split("train")) / batch_size)


# ------------------------------------------------------------------ who sees which cells


def test_every_epoch_sees_each_training_cell_once_and_no_other(fit, data):
    seen = fit(optim={"max_epochs": 3})
    epochs = seen.epochs(n_updates(data))
    n = len(data.split("train"))
    assert [sorted(cells) for cells in epochs] == [list(range(n))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(rows_are(batch, data.split("train")) for batch in seen.training)


@pytest.mark.parametrize(
    "augment", [{}, {"token_dropout": 0.5, "count_thinning": 0.9}], ids=["plain", "augmented"]
)
def test_predicted_are_val_after_every_epoch_and_both_once_at_the_end_as_they_are(
    fit, data, augment
):
    seen = fit(optim={"max_epochs": 3}, augment=augment)
    names = ["val"] * 3 + ["val", "test"]
    for name in names:
        split, found = data.split(name), []
        while len(found) < len(split):
            batch = seen.predicting.pop(0)
            assert rows_are(batch, split)
            found += batch["cell_index"].tolist()
        assert sorted(found) == list(range(len(split)))
    assert seen.predicting == []


def test_a_baseline_is_fitted_on_train_and_tuned_on_val(data, make_config, monkeypatch):
    asked = []

    def fit(self, train, val, n_classes, seed):
        asked.append((*train, *val))
        assert (n_classes, seed) == (len(data.class_names), 5)
        return majority(self, train, val, n_classes, seed)

    majority = MajorityConfig.fit
    monkeypatch.setattr(MajorityConfig, "fit", fit)
    fitted = fit_baseline(make_config(model={"kind": "majority"}, seed=5), data)
    ((*train, val_counts, val_size, val_labels),) = asked
    for name, (counts, size, labels) in (
        ("train", train), ("val", (val_counts, val_size, val_labels)),
    ):  # fmt: skip
        expected, expected_size = data.expression(name)
        assert (counts != expected).nnz == 0
        assert np.array_equal(size, expected_size)
        assert np.array_equal(labels, data.split(name).labels)
    assert len(fitted.val["probabilities"]) == len(data.split("val"))
    assert len(fitted.test["probabilities"]) == len(data.split("test"))


# ------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("class_balanced", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.4])
@pytest.mark.parametrize("tokens_per_batch", [None, 400])
def test_the_loss_and_its_gradient_are_what_the_settings_say(
    fit, data, class_balanced, label_smoothing, tokens_per_batch
):
    seen = fit(
        objectives=[
            {
                "kind": "classify",
                "weight": 3.0,
                "class_balanced": class_balanced,
                "label_smoothing": label_smoothing,
            }
        ],
        optim={
            "tokens_per_batch": tokens_per_batch,
            "lr": 1e-20,  # the network stays as it was: losses and gradients can be had again
            "weight_decay": 0.0,
        },
    )
    points = [point for point in seen.points if "train/loss" in point]
    n_cells = np.bincount(data.split("train").labels, minlength=len(data.class_names))
    weights = 1 / np.sqrt(n_cells)
    weights *= n_cells.sum() / (weights * n_cells).sum()
    assert weights.max() / weights.min() > 1.1
    weights = torch.from_numpy(weights if class_balanced else np.ones_like(weights)).float()
    batches = list(seen.training)
    for point in points[:3]:
        losses = []
        while sum(map(len, losses)) < 24:
            batch = batches.pop(0)
            found = seen.learner(batch, predict=["classify"])["probabilities"].log()
            target = F.one_hot(batch["labels"], len(n_cells)).float()
            target = (1 - label_smoothing) * target + label_smoothing / len(n_cells)
            losses.append(-3 * (target * found).sum(dim=1) * weights[batch["labels"]])
        loss = torch.cat(losses).mean()
        assert point["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(seen.learner.parameters()))
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        assert point["optim/gradient_norm"] == pytest.approx(norm, rel=1e-4)


# --------------------------------------------------------------------- the optimizer


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.3])
def test_the_learning_rate_follows_its_schedule_at_every_update(fit, data, warmup_fraction):
    seen = fit(optim={"max_epochs": 2, "lr": 2e-3, "warmup_fraction": warmup_fraction})
    n = 2 * n_updates(data)
    n_warm = int(warmup_fraction * n)
    assert len(seen.rates) == n
    for step, rates in enumerate(seen.rates):
        if step < n_warm:
            expected = 2e-3 * (step + 1) / n_warm
        else:
            angle = math.pi * (step - n_warm) / (n - n_warm)
            expected = 2e-3 * (0.01 + 0.99 * (1 + math.cos(angle)) / 2)
        assert rates == pytest.approx([expected] * len(rates))
    logged = [point["optim/lr"] for point in seen.points if "optim/lr" in point]
    assert logged == pytest.approx([rates[0] for rates in seen.rates])


def test_weight_decay_is_of_the_linear_layers_weights_alone(fit):
    seen = fit(optim={"weight_decay": 0.25})
    linear = {
        f"{name}.weight"
        for name, module in seen.learner.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert {name for name, decay in seen.decays.items() if decay == 0.25} == linear
    assert {decay for name, decay in seen.decays.items() if name not in linear} == {0.0}


def test_gene_embeddings_learn_at_their_own_rate(fit):
    seen = fit(optim={"max_epochs": 2, "gene_embedding_lr": 0.1})
    for *others, genes in seen.rates:
        assert others == [others[0]] * len(others)
        assert genes == pytest.approx(0.1 * others[0])


def test_frozen_gene_embeddings_are_those_of_the_start(fit, script, data, make_config):
    optim = {"max_epochs": 2, "lr": 0.02, "gene_embedding_lr": 0, "weight_decay": 0.5}
    weights = fit(optim=optim).fitted.weights
    start = script.build_learner(make_config(), data).state_dict()
    for name, weight in weights.items():
        is_frozen = name == "network.gene_embedding.weight"
        assert np.array_equal(weight, start[name].numpy()) == is_frozen, name


def test_gradients_are_clipped_at_the_largest_norm(fit):
    logged = [p["optim/gradient_norm"] for p in fit().points if "optim/gradient_norm" in p]
    clip = min(logged) / 2
    seen = fit(optim={"gradient_clip": clip})
    assert seen.norms == pytest.approx([clip] * len(seen.norms), rel=1e-3)
    assert fit(optim={"gradient_clip": 1e6}).norms[0] == pytest.approx(logged[0], rel=1e-3)


@pytest.mark.parametrize("batch_size", [10, 50])
def test_an_update_is_of_batch_size_cells(fit, data, batch_size):
    seen = fit(optim={"batch_size": batch_size})
    sizes = [len(batch["labels"]) for batch in seen.training]
    n = len(data.split("train"))
    last = n % batch_size or batch_size
    assert sorted(sizes) == sorted([batch_size] * (len(sizes) - 1) + [last])
    assert len(seen.rates) == len(sizes) == n_updates(data, batch_size)


def test_no_more_tokens_at_once_than_asked_for(fit, data):
    seen = fit(optim={"tokens_per_batch": 400})
    for batch in [*seen.training, *seen.predicting]:
        assert batch["token_ids"].numel() <= 400
    assert len(seen.rates) == n_updates(data) < len(seen.training)
    assert max(batch["token_ids"].numel() for batch in fit().training) > 400


# ---------------------------------------------------------------------- augmentation


def test_token_dropout_leaves_out_its_share_of_the_training_tokens(fit, data):
    kept = [(b["token_ids"] > 3).sum() for b in fit(augment={"token_dropout": 0.4}).training]
    total = (data.split("train").arrays["token_ids"] > 3).sum()
    assert float(sum(kept)) / total == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / total))


def test_thinning_keeps_any_share_down_to_the_least_of_the_training_counts(fit, data):
    batches = fit(augment={"count_thinning": 0.8}).training
    sizes = torch.cat([batch["library_size"][:, 0] for batch in batches]).numpy()
    cells = torch.cat([batch["cell_index"] for batch in batches]).numpy()
    shares = np.sort(sizes / data.split("train").library_size[cells, 0])
    # Uniform from 0.2 to 1: no quantile is far from its own (Kolmogorov, at 1 in 10,000).
    uniform = 0.2 + 0.8 * (np.arange(len(shares)) + 0.5) / len(shares)
    assert np.abs(shares - uniform).max() < 0.8 * 2.3 / math.sqrt(len(shares))


@pytest.mark.parametrize("augment", [{"token_dropout": 0.4}, {"count_thinning": 0.8}], ids=str)
def test_a_cell_is_augmented_anew_in_every_epoch(fit, data, augment):
    seen = fit(optim={"max_epochs": 2}, augment=augment)
    n, changed = len(seen.training) // 2, 0
    rows: list[dict] = [{}, {}]
    for i, batch in enumerate(seen.training):
        split = batch["token_ids"].split(batch["lengths"])
        for cell, row in zip(batch["cell_index"].tolist(), split, strict=True):
            rows[i // n][cell] = row.tolist()
    changed = sum(rows[0][cell] != rows[1][cell] for cell in rows[0])
    assert changed > 0.9 * len(rows[0])


# ---------------------------------------------------------------- seed, precision, compile


def test_the_seed_decides_the_order_of_the_cells_the_start_and_the_augmentation(
    fit, script, data, make_config
):
    augment = {"token_dropout": 0.3}
    one, same, other = (fit(seed=seed, augment=augment) for seed in (1, 1, 2))
    for name, weight in one.fitted.weights.items():
        assert np.array_equal(weight, same.fitted.weights[name])
    assert one.epochs(1)[0] == same.epochs(1)[0] != other.epochs(1)[0]
    assert torch.equal(one.training[0]["token_ids"], same.training[0]["token_ids"])
    starts = [
        script.build_learner(make_config(seed=seed), data).network.gene_embedding.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.allclose(starts[0], starts[2])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)],
)
def test_precision_holds_in_training_and_in_predicting(fit, precision, dtype):
    assert fit(precision=precision).dtypes == {(True, dtype), (False, dtype)}


def test_blocks_are_compiled_where_the_config_says_so(script, fit, monkeypatch):
    compiled = []
    monkeypatch.setattr(script, "compile_blocks", compiled.append)
    fit()
    assert compiled == []
    seen = fit(compile=True)
    assert compiled == [seen.learner]


# ------------------------------------------------------------- choosing, stopping, returning


def answers(labels: np.ndarray, n_classes: int, confidence: float, wrong=()) -> np.ndarray:
    """Give every cell its own class with this probability, the wrong ones the class after it."""
    given = labels.copy()
    given[list(wrong)] = (given[list(wrong)] + 1) % n_classes
    others = (1 - confidence) / (n_classes - 1)
    return np.where(given[:, None] == np.arange(n_classes), confidence, others)


@pytest.fixture
def fit_planned(script, data, make_config, monkeypatch):
    """Return a function: answers on val and test by epoch -> fitted, epochs of the network asked.

    No training happens: an epoch writes its number into the network.
    """

    def run(plan: dict[str, list[np.ndarray]], monitor=None, **optim):
        config = make_config(optim={"max_epochs": len(plan["val"])} | optim, monitor=monitor)
        asked = []

        def mark(learner) -> int:
            return round(learner.heads["classify"].layers[-1].bias[0].item())

        def train_epoch(training, *_):
            with torch.no_grad():
                training.learner.heads["classify"].layers[-1].bias.fill_(training.epoch)
            training.step += 1

        def predict(learner, cells, *_):
            asked.append((cells.name, mark(learner)))
            return {"probabilities": plan[cells.name][mark(learner)].astype(np.float32)}

        folder = RunWriter(config)
        with monkeypatch.context() as patch, folder.open(data, writes=True):
            patch.setattr(script, "train_epoch", train_epoch)
            patch.setattr(script, "predict", predict)
            tracker = Tracker(folder.curves, config)
            fitted = script.fit_network(config, data, folder, ALONE, tracker)
            folder.checkpoint.unlink()
        return fitted, asked

    return run


@pytest.fixture
def disagreeing(data) -> dict[str, list[np.ndarray]]:
    """Answers of which macro-F1 on val, and nothing else, is best in the second epoch.

    Accuracy and log-loss on val, and everything on test, are best in others; the last is worst.
    """
    labels, n = data.split("val").labels, len(data.class_names)
    rarest = np.flatnonzero(labels == np.bincount(labels, minlength=n).argmin())
    spread = np.concatenate(
        [np.flatnonzero(labels == label)[: 1 + len(rarest) // n] for label in range(n)]
    )
    assert len(spread) > len(rarest)
    everything = np.arange(len(labels))
    more = np.setdiff1d(everything, spread)[:3]
    test = data.split("test").labels
    val = [
        answers(labels, n, 0.9, everything[: len(labels) // 2]),
        answers(labels, n, 0.4, spread),
        answers(labels, n, 0.6, rarest),  # the most cells right, one type not at all
        answers(labels, n, 0.7, [*spread, *more]),
        answers(labels, n, 0.9, everything),
    ]
    on_test = [answers(test, n, 0.9, np.arange(len(test)) if i else ()) for i in range(len(val))]
    return {"val": val, "test": on_test}


def test_the_fixture_disagrees_with_itself(data, disagreeing):
    val, test = data.split("val"), data.split("test")
    scores = [score([], {"probabilities": p}, val.labels) for p in disagreeing["val"]]
    best = {
        name: int(np.argmax([sign * s[name] for s in scores]))
        for name, sign in (("macro_f1", 1), ("accuracy", 1), ("log_loss", -1))
    }
    assert best["macro_f1"] == 1
    assert best["accuracy"] == 2
    assert best["log_loss"] not in (1, 4)
    scores = [score([], {"probabilities": p}, test.labels) for p in disagreeing["test"]]
    assert int(np.argmax([s["macro_f1"] for s in scores])) == 0


def test_the_epoch_kept_is_the_best_on_val_by_macro_f1(fit_planned, disagreeing):
    fitted, asked = fit_planned(disagreeing, patience=10)
    assert fitted.summary["best_epoch"] == 2
    assert fitted.weights["heads.classify.layers.3.bias"].tolist() == [1.0] * 4
    assert asked == [*(("val", epoch) for epoch in range(5)), ("val", 1), ("test", 1)]
    assert np.allclose(fitted.val["probabilities"], disagreeing["val"][1])
    assert np.allclose(fitted.test["probabilities"], disagreeing["test"][1])


@pytest.mark.parametrize(("monitor", "best"), [("accuracy", 3), ("log_loss", 3)])
def test_another_score_may_choose_the_epoch(fit_planned, disagreeing, data, monitor, best):
    labels = data.split("val").labels
    scores = [score([], {"probabilities": p}, labels)[monitor] for p in disagreeing["val"]]
    assert best == 1 + int(np.argmax(np.array(scores) * (1 if monitor == "accuracy" else -1)))
    fitted, _ = fit_planned(disagreeing, monitor, patience=10)
    assert fitted.summary["best_epoch"] == best


def test_the_last_epoch_is_kept_where_no_score_chooses(fit_planned, disagreeing):
    fitted, asked = fit_planned(disagreeing, "last", patience=1)
    assert fitted.summary["best_epoch"] == 5
    assert asked == [*(("val", epoch) for epoch in range(5)), ("val", 4), ("test", 4)]


@pytest.mark.parametrize(
    ("monitor", "weight_averaging", "last"),
    [(None, None, False), (None, 0.9, True), ("accuracy", 0.9, False), ("last", None, True)],
)
def test_with_averaged_weights_training_goes_to_the_end_unless_a_score_is_named(
    make_config, monitor, weight_averaging, last
):
    config = make_config(monitor=monitor, optim={"weight_averaging": weight_averaging})
    assert config.ends_with_last_epoch == last


@pytest.mark.parametrize("monitor", [None, "macro_f1"])
def test_val_scores_and_the_weights_kept_are_those_of_the_average(
    script, fit, data, monkeypatch, monitor
):
    updates, end_update = [], Training.end_update

    def recorded(training):
        updates.append({k: w.numpy().copy() for k, w in training.learner.state_dict().items()})
        end_update(training)

    monkeypatch.setattr(Training, "end_update", recorded)
    optim = {"max_epochs": 6, "lr": 0.02, "weight_averaging": 0.8}
    seen = fit(optim=optim, monitor=monitor)
    n = n_updates(data)
    assert len(updates) == 6 * n
    # From the weights after the first update on: of those before it nothing is known here, and
    # after a dozen updates nothing is left of them.
    average, of_epochs = dict(updates[0]), []
    for step, weights in enumerate(updates, start=1):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {k: decay * average[k] + (1 - decay) * weights[k] for k in weights}
        if step % n == 0:
            of_epochs.append(average)
    scores = [point for point in seen.points if "val/macro_f1" in point]
    best = max(range(6), key=lambda i: (scores[i]["val/macro_f1"], -scores[i]["val/log_loss"]))
    kept = 5 if monitor is None else best
    assert seen.fitted.summary["best_epoch"] == kept + 1
    for name, weight in seen.fitted.weights.items():
        np.testing.assert_allclose(weight, of_epochs[kept][name], atol=1e-5, err_msg=name)
        assert np.array_equal(weight, seen.learner.state_dict()[name].numpy())
    moved = [np.abs(w - updates[(kept + 1) * n - 1][k]).max() for k, w in of_epochs[kept].items()]
    assert max(moved) > 1e-3  # the average is another network than the one trained
    final = score([], seen.fitted.val, data.split("val").labels)
    assert final["log_loss"] == pytest.approx(scores[kept]["val/log_loss"], rel=1e-6)


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_patience_epochs_after_the_best(fit_planned, disagreeing, patience):
    _, asked = fit_planned(disagreeing, patience=patience)
    assert asked[:-2] == [("val", epoch) for epoch in range(2 + patience)]


def test_of_equal_macro_f1_the_lower_loss_is_kept(fit_planned, data):
    labels, n = data.split("val").labels, len(data.class_names)
    val = [answers(labels, n, confidence, [0]) for confidence in (0.4, 0.8, 0.5)]
    test = [answers(data.split("test").labels, n, 0.5)] * 3
    fitted, _ = fit_planned({"val": val, "test": test})
    assert fitted.summary["best_epoch"] == 2


# ------------------------------------------------------------------------- the clock


@pytest.fixture
def now(monkeypatch):
    """Show a time that only the test moves on."""
    seconds = [100.0]
    monkeypatch.setattr("training.clock.time.perf_counter", lambda: seconds[0])
    return seconds


def passing(now: list[float], seconds: float, function):
    """Return the function, taking so long."""

    def slow(*arguments, **keywords):
        now[0] += seconds
        return function(*arguments, **keywords)

    return slow


def test_the_clock_of_a_baseline_is_its_fit_without_the_reading(
    data, make_config, monkeypatch, now
):
    from models.baselines.majority import Majority

    monkeypatch.setattr(EncodedFolder, "expression", passing(now, 50, EncodedFolder.expression))
    monkeypatch.setattr(MajorityConfig, "fit", passing(now, 7, MajorityConfig.fit))
    monkeypatch.setattr(Majority, "predict_proba", passing(now, 20, Majority.predict_proba))
    assert fit_baseline(make_config(model={"kind": "majority"}), data).summary["seconds"] == 7


def test_the_clock_of_a_network_has_its_start_once_and_no_reading(
    script, data, make_config, monkeypatch, now
):
    from models import expression_network

    config = make_config(model=MODEL | {"gene_init": "svd"}, optim={"max_epochs": 3})
    folder = RunWriter(config)
    stop = [2]

    def train_epoch(training, *_):
        if training.epoch in stop:
            stop.clear()
            raise KeyboardInterrupt
        now[0] += 3
        checkpoint.initialize_optimizer_state(training.optimizer)
        training.step += 1

    svd = []

    def gene_svd(*arguments, **keywords):
        svd.append(None)
        return slow_svd(*arguments, **keywords)

    slow_svd = passing(now, 8, expression_network.gene_svd)
    monkeypatch.setattr(expression_network, "gene_svd", gene_svd)
    monkeypatch.setattr(EncodedFolder, "expression", passing(now, 50, EncodedFolder.expression))
    monkeypatch.setattr(script, "train_epoch", train_epoch)
    monkeypatch.setattr(script, "predict", passing(now, 1, script.predict))
    for is_whole in (False, True):
        with folder.open(data, writes=True):
            tracker = Tracker(folder.curves, config)
            if not is_whole:
                with pytest.raises(KeyboardInterrupt):
                    script.fit_network(config, data, folder, ALONE, tracker)
            else:
                fitted = script.fit_network(config, data, folder, ALONE, tracker)
    assert len(svd) == 1
    assert fitted.summary["start_seconds"] == 8
    assert fitted.summary["seconds"] == 8 + 3 * (3 + 1)
    n = len(data.split("train"))
    assert fitted.summary["cells_per_second"] == pytest.approx(3 * n / 12, abs=0.1)
