"""What is stored of a finished run's probabilities: one temperature, and the scores with it."""

import json

import pytest

from evaluation import METRICS
from evaluation.calibration import apply_temperature, fit_temperature
from training.runs import Run


@pytest.mark.parametrize("name", ["network_run", "baseline_run"])
def test_scores_are_stored_before_and_after_the_temperature_of_val(name, request):
    run = Run(request.getfixturevalue(name))
    val = run.predictions("val")
    temperature = run.metrics["temperature"]
    expected = fit_temperature(val.labels, val.probabilities)
    assert temperature == pytest.approx(expected, rel=1e-4)
    assert abs(temperature - 1) > 1e-3
    for split in ("val", "test"):
        cells, scores = run.predictions(split), run.metrics[split]
        after = apply_temperature(cells.probabilities, temperature)
        for score in ("log_loss", "ece"):
            before = METRICS[score](cells.labels, cells.probabilities)
            assert scores[score] == pytest.approx(before, rel=1e-3)
            at_temperature = pytest.approx(METRICS[score](cells.labels, after), rel=1e-3)
            assert scores[f"{score}_scaled"] == at_temperature
    assert run.metrics["val"]["log_loss_scaled"] < run.metrics["val"]["log_loss"]


def test_the_scaled_scores_of_test_are_logged(network_run):
    lines = [json.loads(line) for line in (network_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["test/log_loss_scaled"] == Run(network_run).metrics["test"]["log_loss_scaled"]
