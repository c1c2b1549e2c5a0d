"""The sentences at the end: does this data need a transformer, and does history help."""

from collections import defaultdict

from evaluation.compare import Comparison
from evaluation.model import Model
from evaluation.outcome import RARE

NEEDED = {
    "better": "yes, this data needs a transformer",
    "network": "no, this data needs a network, but not its attention",
    "attention unknown": "this data needs a network; cannot tell whether it needs attention",
    "worse": "no, this data does not need a transformer",
    "level": "no, this data does not need a transformer",
    "cannot tell": "cannot tell whether this data needs a transformer",
}
HISTORY = {
    "better": "history helps",
    "worse": "history harms",
    "level": "history makes no difference",
    "cannot tell": "cannot tell whether history helps",
}


def verdicts(comparisons: list[Comparison]) -> list[str]:
    """Return one verdict a dataset on the transformer, and one on history where runs can tell."""
    found = []
    for comparison in comparisons:
        if comparison.split == "test":
            found += [verdict(comparison), history_verdict(comparison)]
        else:
            found.append(
                f"{comparison.dataset}: no verdict, for settings are chosen on these cells, and "
                f"their scores flatter what was chosen. Best: {comparison.models[0].name}; train "
                "what you keep with test=true, under another name."
            )
    return [sentence for sentence in found if sentence]


def verdict(comparison: Comparison) -> str:
    """Say whether this data needs a transformer.

    The answer is by macro-F1 over the types with enough test cells: the others' chance is in no
    interval. What all types, accuracy and log-loss say stands beside it. A transformer that is
    better than the best baseline is needed only if it is better than the same without attention.
    How it stands against the best comparator is said apart.
    """
    name = comparison.dataset
    network, baseline = comparison.best_network, comparison.best_baseline
    if network is None or baseline is None:
        missing = "transformer" if network is None else "baseline"
        return (
            f"{name}: cannot say whether this data needs a transformer: no {missing} was run on "
            "it."
        )
    found = comparison.difference(network, baseline, "macro_f1_common")
    by_name = comparison.scores.set_index("model")["macro_f1_common"]
    seeds = "one seed" if len(network.seeds) == 1 else f"mean of {len(network.seeds)} seeds"
    sentences = [f"{name}: {NEEDED[_answer(comparison, network, found['outcome'])]}."]
    start = f"On {len(comparison.labels):,} test cells"
    if len(comparison.common):
        sentences.append(
            f"{start} {network.name} ({seeds}) has a macro-F1 of {by_name[network.name]:.3f} "
            f"over {types_text(comparison)} and the best baseline, {baseline.name}, "
            f"{by_name[baseline.name]:.3f}: {difference_text(comparison, found)}."
        )
    else:
        sentences.append(f"{start} {network.name} against {baseline.name}: {found['reason']}.")
    others = {"accuracy": "In accuracy", "log_loss_scaled": "In log-loss, both scaled on val"}
    if comparison.n_rare:
        n_types = int((comparison.n_cells > 0).sum())
        others = {"macro_f1": f"In macro-F1 over all {n_types} types"} | others
    for metric, start in others.items():
        other = comparison.difference(network, baseline, metric)
        sentences.append(f"{start}: {difference_text(comparison, other)}.")
    if (comparator := comparison.best_comparator) is not None:
        found_against = against(comparison, network, comparator)
        sentences.append(f"Against the best comparator, {comparator.name}: {found_against}.")
    return " ".join([*sentences, attention_verdict(comparison, network)])


def attention_verdict(comparison: Comparison, network: Model) -> str:
    """Say what attention adds: what a transformer has above the best control on val without it."""
    control = comparison.best_without_attention
    if control is None:
        return (
            "What attention adds cannot be said: the control is missing, a network without it "
            "such as that of configs/train/mlp_baron_human.yaml."
        )
    if network.epochs != control.epochs:
        return (
            f"What attention adds cannot be said: {network.name} went through the train cells "
            f"{network.epochs} times and {control.name}, which has no attention, "
            f"{control.epochs} times; train one of them again with the other's optim.max_epochs."
        )
    start = f"What attention adds, {network.name} against {control.name}, which has none"
    return f"{start}: {against(comparison, network, control)}."


def _answer(comparison: Comparison, network: Model, outcome: str) -> str:
    """Return the key of ``NEEDED``: attention is credited with what exceeds the control alone."""
    control = comparison.best_without_attention
    if outcome != "better":
        return outcome
    if control is None or control.epochs != network.epochs:
        return "attention unknown"
    attention = comparison.difference(network, control, "macro_f1_common")["outcome"]
    return {"better": "better", "cannot tell": "attention unknown"}.get(attention, "network")


def history_verdict(comparison: Comparison) -> str:
    """Say whether the previous time point helps; empty where no run could tell.

    Compared are networks of one config and tokenizer, with their own history and with another
    cell's.
    """
    of_config: dict[str, dict[str, Model]] = defaultdict(dict)
    for model in comparison.models:
        if model.role == "network":
            of_config[model.runs[0].model_key(history=False)].setdefault(model.history, model)
    for kinds in of_config.values():  # best on val first
        if {"previous", "shuffled"} <= kinds.keys():
            own = kinds["previous"]
            found = comparison.difference(own, kinds["shuffled"], "macro_f1_common")
            text = (
                f"{comparison.dataset}: {HISTORY[found['outcome']]}. In macro-F1 over "
                f"{types_text(comparison)} {own.name} against the same with histories shuffled "
                f"between cells: {difference_text(comparison, found)}"
            )
            if "none" in kinds:
                found = comparison.difference(own, kinds["none"], "macro_f1_common")
                text += f"; against the same without: {difference_text(comparison, found)}"
            return text + "."
    return ""


def types_text(comparison: Comparison) -> str:
    """Name the types that ``macro_f1_common`` is over."""
    n = len(comparison.common)
    types = "type" if n == 1 else "types"
    return f"the {n} {types} with at least {RARE} test cells"


def against(comparison: Comparison, model: Model, other: Model) -> str:
    """Return the differences of two models in each score that decides, in words."""
    scores = {"accuracy": "in accuracy", "log_loss_scaled": "in log-loss, both scaled on val"}
    if len(comparison.common):
        scores = {"macro_f1_common": f"in macro-F1 over {types_text(comparison)}"} | scores
    found = [
        f"{text} {difference_text(comparison, comparison.difference(model, other, metric))}"
        for metric, text in scores.items()
    ]
    return "; ".join(found)


def difference_text(comparison: Comparison, found: dict) -> str:
    """Return a difference, its intervals and what they allow to be said, in words."""
    if comparison.n_donors > 1:
        donors = f", {found['low_donors']:+.3f} to {found['high_donors']:+.3f} over donors"
    else:
        donors = ""
    text = (
        f"{found['difference']:+.3f} (95 % interval {found['low']:+.3f} to {found['high']:+.3f} "
        f"over cells{donors}), {found['outcome']}"
    )
    if found["reason"]:
        return f"{text}, as {found['reason']}"
    if found["outcome"] == "level":
        return f"{text} (within {comparison.margin:g})"
    holds_0 = comparison.n_donors > 1 and found["low_donors"] <= 0 <= found["high_donors"]
    if holds_0:
        return f"{text} on these cells, though perhaps not in other donors"
    if abs(found["difference"]) <= comparison.margin:
        return f"{text}, though by less than {comparison.margin:g}"
    return text
