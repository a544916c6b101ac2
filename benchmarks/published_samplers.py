"""How jaxdiff samples from a published model by default, beside diffusers: its error at 8, 12 and 25 evaluations.

    python benchmarks/published_samplers.py                 # exact denoisers on published schedules
    python benchmarks/published_samplers.py --trained DIR   # networks trained on MNIST, DIR/train.parquet
    python benchmarks/published_samplers.py --pipelines     # tiny pipelines with random weights; needs torch, diffusers

The error is the mean over samples of the RMS difference to the fine solution of the probability flow (600 steps, 400
of pipelines) from the same noise, over the solution's RMS. Exact denoisers are those of `samplers/problems.py`: the
mixtures of six Gaussians in the plane, and scikit-learn's digits smoothed by 0.15. Trained networks are those of
`configs/mnist_unet.py` on another process, 3 minutes each on two CPU cores, sampled without a label.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxdiff
from benchmarks.samplers.problems import empirical, images, mixture
from jaxdiff.data import open_digits
from jaxdiff.methods import parse_sampler, times
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.classes import table
from jaxdiff.pretrained.schedulers.processes import process_of
from jaxdiff.pretrained.schedulers.steps import follow
from jaxdiff.runs.published import load_config
from jaxdiff.sampling.base import sample

BUDGETS = (8, 12, 25)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
MULTISTEP = {"_class_name": "DPMSolverMultistepScheduler"}
FLOW_SOLVER = {**MULTISTEP, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KARRAS = {"use_karras_sigmas": True}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler"}
SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "Stable Diffusion's chain": (
        {**MULTISTEP, **SD},
        {"DPM++ 2M": {**MULTISTEP, **SD}, "DPM++ 2M Karras": {**MULTISTEP, **SD, **KARRAS}},
    ),
    "linear chain": (MULTISTEP, {"DPM++ 2M": MULTISTEP, "DPM++ 2M Karras": {**MULTISTEP, **KARRAS}}),
    "flow, shift 1": (FLOW, {"Euler": FLOW, "DPM++ 2M": FLOW_SOLVER}),
    "flow, shift 3": (
        {**FLOW, "shift": 3.0},
        {"Euler": {**FLOW, "shift": 3.0}, "DPM++ 2M": {**FLOW_SOLVER, "flow_shift": 3.0}},
    ),
    "EDM": (EDM, {"DPM++ 2M Karras": EDM}),
}
"""Each with its scheduler, and the strict steps that stand beside it."""

Row = dict[str, float]
Problem = tuple[Callable[[Any, Any], Any], tuple[int, ...]]
"""What makes a denoiser of a process and a dtype, and the shape of x."""


def error(found: Any, fine: Any) -> float:
    """Mean over samples of the RMS difference, over the fine solution's RMS."""
    difference = np.asarray(found, np.float64) - fine
    each = np.sqrt(np.square(difference).reshape(len(fine), -1).mean(axis=1))
    return float(each.mean() / np.sqrt(np.square(fine).mean()))


def exact_problems() -> dict[str, Problem]:
    digits = images(open_digits(split="train"), 0, 600)
    made: dict[str, Any] = {f"mixture {seed}": (mixture(seed), (2,)) for seed in (7001, 7002)}
    return {**made, "digits": (empirical(digits), (8, 8, 1))}


@jax.jit
def drawn(exact: Any, x: Array, ts: Array, method: Any) -> Array:
    return sample(method, exact, None, x, ts)


def answer(fields: dict[str, Any], exact: Any) -> Callable[[Array, Array, Any], Array]:
    """What a published network of a scheduler would answer, by an exact denoiser."""
    process, read, _ = process_of(Fields(fields))

    def network(given: Array, told: Array, _: Any) -> Array:
        if "EDM" in fields["_class_name"]:
            t = process.time_of_log_snr(-8 * told)
            x = given * jnp.hypot(process.sigma(t), 0.5)
        elif "Flow" in fields["_class_name"] or "use_flow_sigmas" in fields:
            t, x = jnp.minimum(told / 1000, 0.9999), given
        else:
            t, x = (told + 1) / 1000, given
        found = exact(x, t)
        return read.target(process, found.x0, found.eps, t)

    return network


def trained(name: str, data: Path) -> Callable[[Any, Any], Any]:
    """The denoiser of a network that is trained on a schedule; it may have been already."""
    process, read, _ = process_of(Fields(SCHEDULES[name][0]))
    config = load_config("mnist_unet")
    folder = Path("runs") / f"published_{name.replace(' ', '_').replace(chr(39), '').replace(',', '')}"
    run = jaxdiff.fit(
        dataclasses.replace(
            config,
            name=folder.name,
            workdir=str(folder),
            data=dataclasses.replace(config.data, path=str(data)),
            process=process,
            parameterization=read,
            sample=dataclasses.replace(config.sample, sampler="unipc:order=2", grid="log_snr", guide=()),
        )
    )
    return lambda process, dtype: run.denoise


def on_schedule(name: str, problems: dict[str, Problem], samplers: list[tuple[str, Any]]) -> list[tuple[str, int, Row]]:
    """The errors on a schedule, of strict steps, of the default and of other samplers."""
    fields, strict = SCHEDULES[name]
    process, _, defaults = process_of(Fields(fields))
    rows = []
    for problem, (build, shape) in problems.items():
        exact = build(process, jnp.float32)
        noise = np.random.default_rng(5).standard_normal((64, *shape)).astype(np.float32)

        def ours(sampler: Any, grid: Any, n: int, exact: Any = exact, noise: Any = noise) -> Array:
            method = parse_sampler(sampler, process)
            ts = times(method, grid, n)
            return drawn(exact, noise * process.prior_std(ts[0]), ts, method)

        fine = np.asarray(ours("unipc:order=3", "log_snr", 600), np.float64)
        for n in BUDGETS:
            row = {}
            for label, each in strict.items():
                steps = table(Fields(each), n)
                row[label] = error(follow(steps, answer(each, exact), noise * steps.start), fine)
            row["jaxdiff"] = error(ours(defaults.sampler, defaults.grid, n), fine)
            row |= {f"{sampler} {grid}": error(ours(sampler, grid, n), fine) for sampler, grid in samplers}
            rows.append((problem, n, row))
    return rows


def on_pipelines() -> list[tuple[str, int, Row]]:
    """The errors of tiny pipelines of diffusers with random weights, by their latents."""
    from jaxdiff.pretrained import load_pipeline
    from tests.parity import published
    from tests.parity.originals import quiet, torch

    made = {
        "SD 1": published.stable_diffusion,
        "SD 2 (v)": published.stable_diffusion_2,
        "SD XL": published.stable_diffusion_xl,
        "PixArt": published.pixart,
        "SD 3": published.stable_diffusion_3,
        "FLUX.1 dev": published.flux,
    }
    rows = []
    for name, build in made.items():
        with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
            case = build()
            case.pipe.save_pretrained(Path(folder) / "theirs")
            model = load_pipeline(Path(folder) / "theirs", length=published.length_of(Path(folder) / "theirs"))
            fields = dict(model.scheduler)
            flow = "Flow" in str(fields["_class_name"])
            shift = {key: fields[key] for key in ("use_dynamic_shifting",) if fields.get(key)}
            beside: dict[str, dict[str, Any]] = {
                "DPM++ 2M": {**fields, **MULTISTEP},
                "DPM++ 2M Karras": {**fields, **MULTISTEP, **KARRAS},
            }
            if flow:
                beside = {"Euler": fields, "DPM++ 2M": {**FLOW_SOLVER, "flow_shift": fields["shift"], **shift}}
            shape = model._changed(case.options.get("size"), 0, False).shape
            noise = np.random.default_rng(5).standard_normal((2, *shape))
            given: dict[str, Any] = {"decode": False, "x": noise.astype(np.float32), **case.options}

            def ours(model: Any, given: Any = given, case: Any = case, **how: Any) -> Any:
                return np.asarray(model.sample(0, 2, case.cond, **given, **how), np.float64)

            fine = ours(model, steps=400)
            for n in BUDGETS:
                row = {}
                for label, each in beside.items():
                    row[label] = error(ours(dataclasses.replace(model, scheduler=each), strict=True, steps=n), fine)
                row["jaxdiff"] = error(ours(model, steps=n), fine)
                rows.append((name, n, row))
                print(name, n, row, flush=True)
    return rows


def lines(name: str, rows: list[tuple[str, int, Row]]) -> list[str]:
    """Markdown: a line for each problem and budget."""
    head = [*rows[0][2]]
    made = [f"| {name} | evaluations | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    return made + [f"| {p} | {n} | {' | '.join(f'{row[each]:.4f}' for each in head)} |" for p, n, row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--trained", metavar="DIR", type=Path, help="networks trained on MNIST; its folder")
    parser.add_argument("--pipelines", action="store_true", help="tiny pipelines of diffusers with random weights")
    parser.add_argument("--also", nargs="*", default=[], metavar="SAMPLER@GRID", help="other samplers of ours")
    options = parser.parse_args()
    if options.pipelines:
        rows = on_pipelines()
        for kind in ("Euler", "DPM++ 2M Karras"):
            chosen = [row for row in rows if kind in row[2]]
            print("\n".join(lines("pipeline", chosen)), flush=True)
        return
    samplers = [tuple(each.split("@")) for each in options.also]
    for name in options.schedules:
        if options.trained is None:
            problems = exact_problems()
        else:
            problems = {"MNIST": (trained(name, options.trained), (28, 28, 1))}
        print("\n".join(lines(name, on_schedule(name, problems, samplers))), flush=True)


if __name__ == "__main__":
    main()
