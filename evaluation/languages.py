"""Ways of turning a cell into tokens, side by side: which is best, and do they err alike.

A language is a tokenizer with its network. Networks are compared only where they went through the
train cells equally often, pretraining included: more updates would not make a language better.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from evaluation.compare import Comparison
from evaluation.model import Model
from evaluation.outcome import RARE
from evaluation.over_sets import tested
from evaluation.verdicts import against
from training.runs import Run

SCORES = {
    "accuracy": "accuracy",
    "macro_f1_common": f"macro-F1, types of {RARE}+ cells",
    "log_loss_scaled": "log-loss, scaled on val",
}
BEST = {
    "worse": "the best language is {best}",
    "better": "the best language on val, {best}, is not the best on test",
    "other": "cannot tell which language is best; on val it is {best}",
}
PRETRAINING = {
    "better": "pretraining helps",
    "worse": "pretraining harms",
    "level": "pretraining makes no difference",
    "cannot tell": "cannot tell whether pretraining helps",
}
COMMITTEE = {
    "better": "a committee across languages is better than one of a single language",
    "worse": "a committee across languages is worse than one of a single language",
    "level": "a committee across languages is as good as one of a single language",
    "cannot tell": "cannot tell whether a committee across languages is better than one of a "
    "single language",
}


def language(run: Run) -> str:
    """Name a network's tokens, and the network."""
    return f"{run.meta['tokenizer']['kind']}, {run.config.model.kind}"


def language_summary(comparison: Comparison) -> pd.DataFrame:
    """Return one row a network of the budget compared, best on val first; the first is the best.

    Empty where they are all of one language.
    """
    networks = [model for model in of_one_budget(comparison) if model.role == "network"]
    if len({language(model.runs[0]) for model in networks}) < 2:
        return pd.DataFrame()
    scores, best = comparison.scores.set_index("model"), networks[0]
    rows = []
    for model in networks:
        row = {
            "model": model.name,
            "tokens, network": language(model.runs[0]),
            "pretrained": "yes" if is_pretrained(model) else "",
            "epochs": model.epochs,
        }
        for key, title in SCORES.items():
            row[title] = f"{scores[key][model.name]:.3f}"
        found = comparison.difference(model, best, "macro_f1_common")
        difference = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        row["macro-F1 minus the first's"] = "" if model is best else difference
        row["outcome"] = "" if model is best else found["outcome"]
        rows.append(row)
    return pd.DataFrame(rows).set_index("model")


def language_verdicts(comparisons: list[Comparison]) -> list[str]:
    """Say of each set which language is best, and whether pretraining and committees help."""
    questions: list[Callable[[Comparison], str]] = [_best, _pretraining, _committee, _left_out]
    said = [
        f"{comparison.dataset}: {answer}."
        for comparison in tested(comparisons)
        if len(_best_of_each(comparison)) > 1
        for question in questions
        if (answer := question(comparison))
    ]
    return said


def of_one_budget(comparison: Comparison) -> list[Model]:
    """Return the networks that went through the train cells as often as the best one on val."""
    best = comparison.best_network
    own = [model for model in comparison.models if not model.is_shuffled]
    return [] if best is None else [model for model in own if model.epochs == best.epochs]


def is_pretrained(model: Model) -> bool:
    """Whether it began with the weights of another run."""
    return model.runs[0].config.init_from is not None


def corrected(wrong: Model, other: Model, labels: np.ndarray) -> float:
    """Return the share of a model's errors that another one names correctly, mean over seeds.

    A model is not compared with itself: of one model, it is how much its seeds differ. NaN where
    there is no error, or no other seed.
    """
    pairs = [
        (a.argmax(axis=1) != labels, b.argmax(axis=1) == labels)
        for a, b in product(wrong.test, other.test)
        if a is not b
    ]
    shares = [float(is_right[is_wrong].mean()) for is_wrong, is_right in pairs if is_wrong.any()]
    return float(np.mean(shares)) if shares else np.nan


def _best_of_each(comparison: Comparison) -> dict[str, Model]:
    """Language -> its best transformer on val, among those of one budget; the best one first."""
    found: dict[str, Model] = {}
    for model in of_one_budget(comparison):
        if model.is_transformer:
            found.setdefault(language(model.runs[0]), model)
    return found


def _best(comparison: Comparison) -> str:
    (name, best), *others = _best_of_each(comparison).items()
    outcomes = {
        comparison.difference(other, best, "macro_f1_common")["outcome"] for _, other in others
    }
    answer = "better" if "better" in outcomes else "worse" if outcomes == {"worse"} else "other"
    parts = []
    for of_other, other in others:
        share = corrected(best, other, comparison.labels)
        errors = "" if np.isnan(share) else f"; it corrects {share:.0%} of the best one's errors"
        differences = against(comparison, other, best)
        parts.append(f"{other.name} ({of_other}) {differences}{errors}")
    seeds = corrected(best, best, comparison.labels)
    chance = "" if np.isnan(seeds) else f". Another seed of {best.name} corrects {seeds:.0%}"
    return (
        f"{BEST[answer].format(best=f'{name} ({best.name})')}, each trained for {best.epochs} "
        f"epochs. Against it {'; '.join(parts)}{chance}"
    )


def _pretraining(comparison: Comparison) -> str:
    """Compare the best pretrained network with the best of its language from scratch."""
    networks = [model for model in of_one_budget(comparison) if model.is_transformer]
    for model in filter(is_pretrained, networks):
        name = language(model.runs[0])
        same = [m for m in networks if language(m.runs[0]) == name and not is_pretrained(m)]
        if same:
            found = comparison.difference(model, same[0], "macro_f1_common")
            return (
                f"{PRETRAINING[found['outcome']]}. {model.name} against {same[0].name}, of as "
                f"many epochs: {against(comparison, model, same[0])}"
            )
    return ""


def _committee(comparison: Comparison) -> str:
    """Compare the best committees of several languages and of one, of transformers alone."""
    best: dict[bool, Model] = {}
    for model in comparison.models:
        members = model.runs[0].members
        languages = {language(member) for member in members}
        if languages and all(getattr(run.config.model, "attends", False) for run in members):
            best.setdefault(len(languages) > 1, model)
    if len(best) < 2:
        return ""
    several, one = best[True], best[False]
    found = comparison.difference(several, one, "macro_f1_common")
    return (
        f"{COMMITTEE[found['outcome']]}. {several.name} against {one.name}: "
        f"{against(comparison, several, one)}"
    )


def _left_out(comparison: Comparison) -> str:
    same = {model.name for model in of_one_budget(comparison)}
    networks = [m for m in comparison.models if m.role == "network" and not m.is_shuffled]
    others = [model for model in networks if model.name not in same]
    if not others:
        return ""
    named = ", ".join(f"{model.name} ({model.epochs or 'unknown'})" for model in others)
    return (
        f"not compared with these languages, for they went through the train cells another number "
        f"of times: {named}"
    )
