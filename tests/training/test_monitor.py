import pytest

from configs.base import ConfigError
from training.config import TrainConfig
from training.monitor import monitored, rating

SCORES = {"accuracy": 0.9, "macro_f1": 0.8, "log_loss": 0.4, "masked_gene_loss": 2.0}


def test_macro_f1_decides_and_without_classes_the_first_loss():
    assert monitored(SCORES, None) == "macro_f1"
    assert monitored({"masked_gene_accuracy": 0.1, "masked_gene_loss": 2.0}, None) == (
        "masked_gene_loss"
    )
    assert monitored(SCORES, "accuracy") == "accuracy"
    assert monitored(SCORES, "last") == "macro_f1"  # shown, and decides nothing


def test_without_a_score_none_can_decide():
    assert monitored({}, "last") == ""
    run = {"name": "a", "data": "b", "model": {"kind": "residual_mlp"}}
    run["objectives"] = [{"kind": "elastic_similarity"}]
    with pytest.raises(ValueError, match="none has a val score; set monitor=last"):
        TrainConfig.model_validate(run)
    TrainConfig.model_validate(run | {"monitor": "last"})
    TrainConfig.model_validate(run | {"optim": {"weight_averaging": 0.9}})
    run["objectives"].append({"kind": "masked_value"})
    TrainConfig.model_validate(run)


def test_a_score_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(
        ConfigError, match=r"found 'f1'.*accuracy, macro_f1, log_loss, masked_gene_loss, or last"
    ):
        monitored(SCORES, "f1")


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [("macro_f1", 0.9, 0.8), ("log_loss", 0.1, 0.2), ("ece", 0.0, 0.1), ("brier", 0.2, 0.4)],
)
def test_of_scores_more_is_better_and_of_losses_less(name, better, worse):
    assert rating(SCORES | {name: better}, name) > rating(SCORES | {name: worse}, name)


def test_ties_go_to_the_lower_log_loss():
    assert rating(SCORES | {"log_loss": 0.3}, "macro_f1") > rating(SCORES, "macro_f1")
