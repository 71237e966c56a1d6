"""Control: the right methods meet the exact posterior and the wrong ones do not; networks are steered."""

from __future__ import annotations

import numpy as np
import pytest
from executed import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    names = ("VP", "PSLD")
    expressions = {
        "mmps": "[two[name, 'mmps, 20'][:, 1] for name in PROCESSES]",
        "replaced": "[two[name, f'replacement, {BUDGETS[-1]}'][:, 1] for name in PROCESSES]",
        "signal": "[errors[problem, name, 'mmps, 12 iterations'] for problem in PROBLEMS for name in PROCESSES]",
        "white": "errors['missing', 'PSLD', 'pigdm']",
        "weights": "weights",
        "shares": "[[shares(particles[name, m]) for m in ('mmps', 'twisted')] for name in PROCESSES]",
        "evidence": "[evidences[name] - log_evidence for name in PROCESSES]",
        "learnt": "[learnt[problem, name] for problem in PROBLEMS for name in LEARNT]",
        "signals": "x_test",
        "half": "[found['half', name, 'mmps'] for name in LEARNT]",
        "truth": "truth_images",
        "guided": "[guidance_report[f'{name}, classifier-free'][0] for name in LEARNT]",
        "classified": "guidance_report['PSLD, classifier'][0]",
    }
    executed = execute("control", tmp_path_factory.mktemp("notebook"), **expressions)
    assert all(name in executed.printed("two") for name in names)
    return executed.report


def test_where_the_posterior_is_known_bayes_rule_meets_it_and_replacement_does_not(report):
    np.testing.assert_allclose(report["mmps"].mean(axis=1), 1.35, atol=0.06)
    np.testing.assert_allclose(report["mmps"].var(axis=1), 0.19, atol=0.04)
    assert (report["replaced"].mean(axis=1) < 1.1).all()
    assert (report["signal"] < 0.2).all()  # errors of mean and deviation, in deviations of the posterior
    assert (report["white"] > 0.2).all()  # with the covariance of white data


def test_particles_find_the_weights_of_the_modes(report):
    likeliest = np.argmax(report["weights"])
    mmps, twisted = report["shares"][:, :, likeliest].T
    assert report["weights"][likeliest] == pytest.approx(0.61, abs=0.01)
    assert (mmps < 0.35).all() and (np.abs(twisted - 0.61) < 0.15).all()
    np.testing.assert_allclose(report["evidence"], 0.0, atol=0.5)


def test_networks_are_steered_by_what_was_measured_and_by_the_class(report):
    assert np.isfinite(report["learnt"]).all()
    wrong = np.sqrt(np.mean((np.mean(report["learnt"], axis=2) - report["signals"]) ** 2, axis=(1, 2, 3)))
    missing, blurred = wrong
    assert missing < 0.8 and blurred < 0.4  # without the measurement: 1
    for x in report["half"]:
        assert np.sqrt(np.mean((x - report["truth"][:, None])[:, :, :, :4] ** 2)) < 0.15  # the half that is known
    assert (report["guided"][:, 0] < 0.3).all() and (report["guided"][:, 3] > 0.8).all()
    assert report["classified"][4] > report["classified"][0] + 0.3
