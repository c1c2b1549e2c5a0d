"""Several sets of cells in one table: which model is good on all of them, and at what cost.

Means and ranks are over the same sets for every model, so the table holds the models that were run
on all of them, told by their names. What a sentence calls ours is the best committee on val that
has a transformer (the best network where there is none), against the best baseline, the best
comparator and the best committees without attention and without a network on val.
"""

import pandas as pd

from evaluation.compare import Comparison
from evaluation.controls import with_controls
from evaluation.model import Model
from evaluation.outcome import RARE
from evaluation.verdicts import difference_text

MEANS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "macro_f1_common": f"macro-F1, types of {RARE}+ cells",
    "log_loss_scaled": "log-loss, scaled on val",
    "above_controls": "above controls",
}
RANKED_BY = "macro_f1_common"
JUDGED = {
    "macro_f1_common": f"macro-F1 over types of {RARE}+ cells",
    "accuracy": "accuracy",
    "log_loss_scaled": "log-loss, scaled on val",
}
COUNTED = {"accuracy": "accuracy", "macro_f1_common": "macro-F1", "log_loss_scaled": "log-loss"}
OUTCOMES = ("better", "level", "worse", "cannot tell")


def tested(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparisons on test."""
    return [comparison for comparison in comparisons if comparison.split == "test"]


def over_sets(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row a model that was run on every set, best mean rank first.

    ``mean_rank`` is by macro-F1 over the types with enough test cells, among these models, ties at
    their mean. Columns such as ``accuracy better`` count the sets by the paired interval of a
    score against the best baseline on val, which on its own sets is not counted; ``seconds`` are
    of all sets together. Sets without such a type have no rank.
    """
    sets = tested(comparisons)
    tables = [with_controls(comparison).set_index("model") for comparison in sets]
    names = _on_all(sets)
    counted = [f"{metric} {word}" for metric in COUNTED for word in OUTCOMES]
    columns = [*MEANS, "mean_rank", *counted, "seconds"]
    if not names:
        return pd.DataFrame(columns=columns, index=pd.Index([], name="model"))
    scores = pd.concat([table.loc[names] for table in tables], keys=range(len(sets)))
    scores["mean_rank"] = scores[RANKED_BY].groupby(level=0).rank(ascending=False)
    by_model = scores.groupby(level="model")
    found = by_model[[*MEANS, "mean_rank"]].mean().assign(seconds=by_model["seconds"].sum())
    words = pd.concat([comparison.differences for comparison in sets])
    counts = pd.crosstab(words["model"], words["metric"] + " " + words["outcome"])
    counts = counts.reindex(index=found.index, columns=counted, fill_value=0)
    return found.join(counts).sort_values("mean_rank")[columns]


def not_on_all(comparisons: list[Comparison]) -> list[str]:
    """Return the names of the models that some of the sets lack, and the table therefore."""
    sets = tested(comparisons)
    known = {model.name for comparison in sets for model in comparison.models}
    return sorted(known - set(_on_all(sets)))


def over_sets_summary(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return the table for people."""
    found = over_sets(comparisons)
    shown = pd.DataFrame(index=found.index)
    for key, title in MEANS.items():
        shown[title] = found[key].map("{:.3f}".format)
    shown["mean rank"] = found["mean_rank"].map("{:.1f}".format)
    for metric, title in COUNTED.items():
        counts = found[[f"{metric} {word}" for word in OUTCOMES]].astype(int).to_numpy()
        shown[f"{title}: {', '.join(OUTCOMES)}"] = [" / ".join(map(str, row)) for row in counts]
    return shown.assign(seconds=found["seconds"].map("{:,.0f}".format))


def about_over_sets(comparisons: list[Comparison]) -> str:
    """Say what the table holds and what it lacks."""
    sets = tested(comparisons)
    text = (
        f"Means over {len(sets)} sets of cells ({', '.join(c.dataset for c in sets)}). Rank 1 is "
        f"the best macro-F1 over types of {RARE}+ test cells of the models here. On how many sets "
        "a model is better, level or worse than the best baseline on val, and on how many nobody "
        "can tell, is counted by the paired interval of accuracy, of that macro-F1 and of "
        "log-loss, scaled on val; the best baseline's own sets are not counted. Seconds are of "
        "all sets together."
    )
    if missing := not_on_all(comparisons):
        text += f" Not here, for they were not run on every set: {', '.join(missing)}."
    return text


def ours_verdicts(comparisons: list[Comparison]) -> list[str]:
    """Return a text a set: is ours better than the best of the others, and at what cost."""
    return [_ours_verdict(comparison) for comparison in tested(comparisons)]


def _ours_verdict(comparison: Comparison) -> str:
    ours = comparison.ours
    if ours is None or comparison.best_baseline is None:
        missing = "baseline" if ours else "network or committee"
        return f"{comparison.dataset}: no {missing} was run on it."
    others = {
        "best baseline": comparison.best_baseline,
        "best comparator": comparison.best_comparator,
        "best committee without attention": comparison.best_committee_without_attention,
        "best committee without a network": comparison.best_committee_without_networks,
    }
    found = [_against(comparison, ours, x, title) for title, x in others.items() if x is not None]
    later = [text[0].upper() + text[1:] for text in found[1:]]
    said = [*found[:1], *later, _who_is_better(comparison, ours)]
    return f"{comparison.dataset}: {' '.join(said)}"


def _who_is_better(comparison: Comparison, ours: Model) -> str:
    """Say which baselines and comparators, however they did on val, are better than ours."""
    others = [m for m in comparison.models if m.role in ("baseline", "comparator")]
    better = [
        f"{other.name} in {title}"
        for other in others
        for metric, title in JUDGED.items()
        if comparison.difference(other, ours, metric)["outcome"] == "better"
    ]
    if better:
        return f"Better than ours for certain: {'; '.join(better)}."
    return (
        f"None of {len(others)} baselines and comparators is better for certain in any of these."
    )


def _against(comparison: Comparison, ours: Model, other: Model, title: str) -> str:
    found = {metric: comparison.difference(ours, other, metric) for metric in JUDGED}
    words = {
        "cannot tell": f"cannot tell whether ours is better or worse than the {title}",
        "level": f"ours is level with the {title}",
    }
    outcome = found["macro_f1_common"]["outcome"]
    answer = words.get(outcome, f"ours is {outcome} than the {title}")
    parts = [f"{score} {difference_text(comparison, found[m])}" for m, score in JUDGED.items()]
    return (
        f"{answer}. {ours.name} against {other.name}, each the best on val of its kind: "
        f"{'; '.join(parts)}. Fitting took {ours.cost('seconds'):,.0f} against "
        f"{other.cost('seconds'):,.0f} seconds."
    )


def _on_all(sets: list[Comparison]) -> list[str]:
    named = [{model.name for model in comparison.models} for comparison in sets]
    return sorted(set.intersection(*named)) if named else []
