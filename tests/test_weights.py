"""Weights at the ends of a process, where one factor is 0 and another infinite. (Their values: test_loss.py.)"""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxdiff as jd
from tests.tables import PARAMETERIZATIONS, PROCESSES
from tests.test_loss import WEIGHTS


@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("process_name", ["Flow", "CosineVP", "SigmoidVP", "Shifted_flow", "DiscreteVP_zero_snr"])
def test_weights_have_their_limits_where_there_is_no_signal(process_name: str, weight: str) -> None:
    """At alpha = 0 the weight on x0 and the factor of every target are what they tend to there: numbers, or infinity
    where they grow without bound."""
    with jax.enable_x64(True):
        process, w = PROCESSES[process_name](), WEIGHTS[weight]
        near = 1.0 - np.array([1e-5, 1e-7])  # of a chain: within its last interval
        for target in (None, *PARAMETERIZATIONS.values()):
            say = lambda t, target=target: (  # noqa: E731
                w.on_x0(process, t) if target is None else w.on_target(process, target, t)
            )
            end, (far, close) = float(say(1.0)), np.asarray(say(near))
            assert not np.isnan(end), (target, weight)
            if np.isinf(end):
                assert close > 5 * far > 0, (target, weight)  # like 1/alpha at least
            else:
                assert abs(close - end) <= 0.2 * abs(far - end) + 1e-4 * abs(end), (target, weight)


def test_weights_have_their_limits_where_there_is_no_noise() -> None:
    """At sigma = 0, SNR = infinity: SNR is still 1 on eps, min-SNR gamma on x0, P2 of gamma 1 one on x0."""
    process = jd.Flow()
    assert float(jd.SNR().on_target(process, jd.Eps(), 0.0)) == 1.0
    assert float(jd.SNR().on_target(process, jd.V(), 0.0)) == pytest.approx(1.0)
    assert float(jd.SNR().on_target(process, jd.Karras(0.5), 0.0)) == pytest.approx(1.0)
    assert float(jd.MinSNR(5.0).on_x0(process, 0.0)) == 5.0
    assert float(jd.MinSNR().on_target(process, jd.Eps(), 0.0)) == 0
    assert float(jd.P2(1.0, 1.0).on_x0(process, 0.0)) == 1.0
    assert float(jd.KarrasWeight(0.5).on_target(process, jd.Karras(0.5), 0.0)) == pytest.approx(1.0)
    assert not np.isnan(jd.Sigmoid().on_x0(jd.VP(), 0.0)) and not np.isnan(
        jd.Sigmoid().on_target(jd.VP(), jd.Eps(), 0.0)
    )
