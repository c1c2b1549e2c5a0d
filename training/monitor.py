"""Which epoch is the best: one val score decides, or none does and it is the last."""

from configs.base import ConfigError

LOWER_IS_BETTER = ("loss", "ece", "brier")  # what the names of such scores end with
LAST = "last"  # as the config's monitor: no score decides


def monitored(scores: dict[str, float], monitor: str | None) -> str:
    """Return the name of the score that decides, or that is shown where none does, if any.

    Parameters
    ----------
    scores
        Of val.
    monitor
        The config's; None or last: ``macro_f1`` where there are classes, else the first loss.

    Raises
    ------
    ConfigError
        If there is no such score, and one is to decide.
    """
    losses = [name for name in scores if name.endswith("loss")]
    name = "macro_f1" if "macro_f1" in scores else (losses or [""])[0]
    if monitor not in (None, LAST):
        name = monitor
    if name not in scores and monitor != LAST:
        raise ConfigError(
            f"monitor: found {monitor!r}, which is no val score of these objectives; expected one "
            f"of {', '.join(scores)}, or {LAST}"
        )
    return name


def rating(scores: dict[str, float], name: str) -> tuple[float, float]:
    """Return what the best epoch has most of: the score, and in a tie the lower log-loss."""
    sign = -1.0 if name.endswith(LOWER_IS_BETTER) else 1.0
    return sign * scores[name], -scores.get("log_loss", 0.0)
