"""How far a record is from itself after inversion and sampling under the same conditions.

    python benchmarks/inversion.py                            digits and a mixture, by exact denoisers
    python benchmarks/inversion.py --run runs/digits          a trained network on real digits, with guidance too

Each sampler walks a grid in log-SNR up and down. DDIM comes back with its steps' error; EDICT and O-BELM with rounding.
Exits with 1 where one of these two is off by more than 1e-4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdiff
from benchmarks.posteriors.cases import PROCESS, digits, mixture
from benchmarks.report import say
from jaxdiff import integrate, log_snr_times
from jaxdiff.data import open_digits
from jaxdiff.methods import parse_sampler

SAMPLERS, EXACT, STEPS = ("ddim", "dpmpp_2m", "heun", "edict", "belm"), ("edict", "belm"), (20, 50)
BOUND = 1e-4


@jax.jit
def _back(sampler: Any, prior: Any, x: Any, ts: Any) -> Any:
    noise, state = integrate(sampler, prior, None, x, ts[::-1])
    return integrate(sampler, prior, None, noise, ts, state=state if sampler.exact_inverse else None)[0]


def of_prior(prior: Any, name: str, steps: int) -> float:
    """The greatest error of 64 records of an exact denoiser, in x0's units."""
    ts = log_snr_times(PROCESS, steps)
    x = PROCESS.alpha(ts[-1]) * prior.sample_data(jax.random.key(0), 64)
    return float(np.abs(np.asarray(_back(parse_sampler(name, PROCESS), prior, x, ts) - x)).max())


def of_run(run: Any, name: str, steps: int, guide: Any) -> float:
    """The same of 32 digits by a run, with guidance on both ways."""
    source = open_digits()
    record = source.take(np.arange(32))
    cond = {"label": record["label"]}
    x0 = np.asarray(run.codec.encode({"x": jax.numpy.asarray(record["x"])})["x"])
    way: dict[str, Any] = {"sampler": name, "steps": steps, "grid": "log_snr"}
    found = run.invert({"x": record["x"]}, cond, guide=guide, **way)
    exact = isinstance(found, jaxdiff.inverse.Inverted)
    back = run.sample(0, 32, cond, x=found, guide=guide, decode=False, **({} if exact else way))
    return float(np.abs(back - x0).max())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a run on digits, in the place of exact denoisers")
    options = parser.parse_args(arguments)
    if options.run is None:
        priors = {"mixture, d = 8": mixture(8), "digits": digits()}
        of: dict[str, Any] = {
            title: lambda name, steps, prior=prior: of_prior(prior, name, steps) for title, prior in priors.items()
        }
    else:
        run = jaxdiff.load(options.run)
        of = {
            title: lambda name, steps, guide=guide: of_run(run, name, steps, guide)
            for title, guide in (("run", ()), ("run, cfg:2", "cfg:2"))
        }
    worst = 0.0
    say(f"| {'of':16} | steps | " + " | ".join(f"{name:8}" for name in SAMPLERS) + " |")
    say("|" + "---|" * (len(SAMPLERS) + 2))
    for title, error in of.items():
        for steps in STEPS:
            found = {name: error(name, steps) for name in SAMPLERS}
            worst = max(worst, *(found[name] for name in EXACT))
            say(f"| {title:16} | {steps:5} | " + " | ".join(f"{found[name]:8.1e}" for name in SAMPLERS) + " |")
    say(f"the exact methods' worst: {worst:.1e}, bound {BOUND:.0e}")
    return int(not worst <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
