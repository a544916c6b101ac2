"""`evaluate.py` and the metrics behind it: on a tiny run, and on an exact denoiser whose bits are known."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from scipy.stats import norm

import evaluate
from jaxdiff import CosineVP, GaussianDenoiser
from jaxdiff.broadcast import expand
from jaxdiff.codecs import Arrays, Images, Points
from jaxdiff.config import ConfigError
from jaxdiff.data import open_digits
from jaxdiff.denoiser import Cond
from jaxdiff.evaluate import METRICS, EvaluateOptions, MetricError, Result, bits
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.runs.run import Run
from jaxdiff.spec import Spec
from tests.parallel.processes import Group

QUICK = ("--num", "6", "--batch-size", "4", "--steps", "3")


@pytest.fixture(scope="module")
def folder(tiny_run: Path) -> Path:
    return tiny_run


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run.load(folder)


class GreyNoise:
    """A source of images of rounded Gaussian noise: 2x2 pixels, whose code length is known."""

    name = "grey noise"
    spec: ClassVar = {"x": Spec((2, 2, 1), "uint8", 0, 255)}
    std = 0.25

    def __init__(self, n: int) -> None:
        levels = np.arange(256)
        edges = np.concatenate([[-np.inf], (levels[1:] - 0.5) / 127.5 - 1.0, [np.inf]])
        self.mass = np.diff(norm.cdf(edges / self.std))
        self._images = np.random.default_rng(0).choice(levels, (n, 2, 2, 1), p=self.mass).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        return {"x": self._images[indices]}

    def bits(self) -> np.ndarray:
        return -np.log2(self.mass[self._images]).reshape(len(self), -1).mean(axis=1)


class Plane(GreyNoise):
    """Points of the plane, real-valued."""

    spec: ClassVar = {"x": Spec((2,))}

    def __init__(self, n: int) -> None:
        self._images = np.random.default_rng(0).normal(0, self.std, (n, 2)).astype(np.float32)


def with_denoiser(run: Run, denoise: Any, codec: Any = None, cond: Any = None) -> Run:
    """A run whose model has another denoiser."""
    model = dataclasses.replace(
        run.model, denoise=denoise, codec=codec or run.codec, cond=run.model.cond if cond is None else cond
    )
    return dataclasses.replace(run, model=model)


@pytest.fixture
def exact(run: Run) -> Run:
    """A run whose denoiser knows the law of `GreyNoise`."""
    denoise: Any = GaussianDenoiser(CosineVP(), 0.0, GreyNoise.std)
    config = dataclasses.replace(
        run.config, process=CosineVP(), network=dataclasses.replace(run.config.network, num_classes=None)
    )
    return with_denoiser(dataclasses.replace(run, config=config), denoise, Images((2, 2, 1)), {})


def final(measured: Iterator[Result]) -> dict[str, Result]:
    return {m.name: m for m in measured}


def test_bits_of_a_known_law(exact: Run) -> None:
    """By every method the bits of grey noise under its own law: the entropy of the rounded Gaussian."""
    source = GreyNoise(120)
    options = EvaluateOptions(
        method=("ode", "elbo", "vlb"),
        estimator=("rademacher", "gaussian"),
        batch_size=50,
        draws=32,
        chain=512,
        steps=24,
    )
    found = final(bits(exact, source, options))
    assert set(found) == {"bpd ode rademacher", "bpd ode gaussian", "bpd elbo", "bpd vlb fixed_small"}
    for name, most in (
        ("bpd ode rademacher", 2e-3),
        ("bpd ode gaussian", 2e-3),
        ("bpd elbo", 0.01),
        ("bpd vlb fixed_small", 0.3),
    ):
        measured = found[name]
        apart = np.array(measured.values) - source.bits()
        error = apart.std(ddof=1) / math.sqrt(len(apart))
        assert -4.5 * error - 2e-3 < apart.mean() < most + 4.5 * error, (name, apart.mean(), error)
        assert (measured.done, measured.total, len(measured.values)) == (120, 120, 120)
        assert measured.mean == pytest.approx(np.mean(measured.values))
        assert measured.error == pytest.approx(np.std(measured.values, ddof=1) / math.sqrt(120))
    vlb = found["bpd vlb fixed_small"]
    assert vlb.parts["prior"] + sum(vlb.parts["terms"]) == pytest.approx(vlb.mean, rel=1e-5)
    assert len(vlb.parts["x0_mse"]) == 512
    elbo = found["bpd elbo"]
    assert sum(elbo.parts[part] for part in ("prior", "reconstruction", "diffusion")) == pytest.approx(elbo.mean)


def test_points_have_a_density_and_no_grey_levels(exact: Run) -> None:
    source = Plane(40)
    model = dataclasses.replace(exact.model, codec=Points((2,)))
    (measured,) = final(bits(dataclasses.replace(exact, model=model), source, EvaluateOptions(steps=24))).values()
    log_density = norm.logpdf(source.take(np.arange(40))["x"], 0, Plane.std).mean(axis=1)
    np.testing.assert_allclose(measured.values, -log_density / math.log(2), atol=2e-3)


def test_the_density_is_that_of_the_data_as_stored(exact: Run) -> None:
    """Standardised by a codec, x0 = (x - mean)/std has another density than x."""
    source, codec = (
        Plane(40),
        Arrays((2,), mean=np.array([3.0, -1.0], np.float32), std=np.array([0.5, 4.0], np.float32)),
    )
    shifted = codec.decode(jnp.asarray(source.take(np.arange(40))["x"]))["x"]

    class Stored(Plane):
        def take(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
            return {"x": np.asarray(shifted)[indices]}

    model = dataclasses.replace(exact.model, codec=codec)
    (measured,) = final(bits(dataclasses.replace(exact, model=model), Stored(40), EvaluateOptions(steps=24))).values()
    log_density = norm.logpdf(shifted, np.array([3.0, -1.0]), Plane.std * np.array([0.5, 4.0])).mean(axis=1)
    np.testing.assert_allclose(measured.values, -log_density / math.log(2), atol=2e-3)


@record
class ByLabel:
    """A denoiser whose data point grows with the label."""

    process: Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        assert cond is not None
        given = GaussianDenoiser(self.process, 0.0, 0.5)(x, t)
        return given._replace(x0=given.x0 * expand(1.0 + 0.05 * cond["label"], x))


def test_an_image_has_its_own_figures(run: Run) -> None:
    """At any batch size, and alone of a smaller choice; another seed has other ones."""
    by_label: Any = ByLabel(CosineVP())  # of a network: test_devices_and_processes_have_the_same_figures
    run, source = with_denoiser(run, by_label), open_digits(split="test")
    options = EvaluateOptions(num=6, steps=3, batch_size=4)
    (whole,) = final(bits(run, source, options)).values()
    (single,) = final(bits(run, source, dataclasses.replace(options, batch_size=1))).values()
    np.testing.assert_allclose(single.values, whole.values, rtol=1e-4)
    (half,) = final(bits(run, source, dataclasses.replace(options, num=3))).values()
    np.testing.assert_allclose(half.values, whole.values[::2], rtol=1e-4)  # spread over the split
    (other,) = final(bits(run, source, dataclasses.replace(options, seed=1))).values()
    assert np.abs(np.subtract(other.values, whole.values)).min() > 0


def test_the_model_is_given_the_label_or_none(run: Run) -> None:
    by_label: Any = ByLabel(CosineVP())
    run, source = with_denoiser(run, by_label), open_digits(split="test")
    options = EvaluateOptions(num=2, steps=3)
    (labelled,) = final(bits(run, source, options)).values()
    (unlabelled,) = final(bits(run, source, dataclasses.replace(options, labels=False))).values()
    assert np.abs(np.subtract(labelled.values, unlabelled.values)).min() > 1e-3


def test_a_likelihood_that_is_not_finite_is_said(exact: Run) -> None:
    broken: Any = GaussianDenoiser(CosineVP(), 0.0, float("nan"))
    with pytest.raises(MetricError, match="4 of 4 images have no finite likelihood"):
        list(bits(with_denoiser(exact, broken), GreyNoise(4), EvaluateOptions(steps=2)))


def test_labels_are_needed_or_refused(run: Run) -> None:
    run = with_denoiser(run, run.denoise, Images((2, 2, 1)))
    with pytest.raises(ConfigError, match="has no label: pass --no-labels"):
        list(bits(run, GreyNoise(2), EvaluateOptions()))
    config = dataclasses.replace(run.config, loss=dataclasses.replace(run.config.loss, dropout={}))
    with pytest.raises(ConfigError, match="trained without dropping label"):
        strict = Run.of(config, run.denoise.params, run.step, run.mesh)
        strict = with_denoiser(strict, strict.denoise, Images((2, 2, 1)))
        list(bits(strict, GreyNoise(2), EvaluateOptions(labels=False)))


# --- evaluate.py


def test_evaluate_prints_and_writes(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "results.json"
    options = [*QUICK, "--method", "ode", "elbo", "--draws", "2", "--time", "log_snr", "--out", str(out)]
    evaluate.main([str(folder), "--metrics", "bpd", "--split", "test", *options])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("JAX ") and lines[0].startswith(f"step 2 of {folder}, test split of ")
    assert lines[1].startswith("bpd ode rademacher  ") and "+-" in lines[1] and lines[1].endswith("(6 images)")
    content = json.loads(out.read_text())
    assert (content["step"], content["split"], content["interrupted"]) == (2, "test", False)
    assert [r["name"] for r in content["results"]] == ["bpd ode rademacher", "bpd elbo"]
    assert len(content["results"][0]["values"]) == 6 and content["options"]["steps"] == 3
    assert f"{content['results'][0]['mean']:.3f}"[:4] in lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_an_interrupt_keeps_what_is_done(
    number: int, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Iterator[Result]:
        yield Result("bpd ode", "bits/dim", 2, 10, 3.25, 0.25, {}, [3.0, 3.5])
        os.kill(os.getpid(), number)
        yield Result("bpd ode", "bits/dim", 4, 10, 3.25, 0.125, {}, [3.0, 3.5, 3.0, 3.5])
        raise AssertionError("another batch was begun")

    monkeypatch.setitem(METRICS, "bpd", interrupted)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(folder), "--out", str(tmp_path / "r.json")])
    out = capsys.readouterr().out
    assert (
        stopped.value.code == 128 + number
        and "3.250 +- 0.125 bits/dim  (4 of 10 images)" in out
        and "interrupted" in out
    )
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["interrupted"] and content["results"][0]["done"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the folder of a run is missing"),
        ("nothing", "'nothing' is not the folder of a run"),
        ("RUN --metrics fidd", "--metrics: there is no 'fidd'"),
        ("RUN --metrics bdp", "did you mean 'bpd'"),
        ("RUN --split nothing", "nothing"),
        ("RUN --num 0", "--num: 0 is out of range"),
        ("RUN --batch-size 0", "batch_size: 0 is out of range"),
        ("RUN --steps 3 --rtol 0.1", "give one of them"),
        ("RUN --rtol 2", "--rtol: 2.0 is out of range"),
        ("RUN --method odd", "--method takes"),
        ("RUN --estimater exact", "did you mean --estimator?"),
        ("RUN --out r.txt", "must end in .json"),
        ("RUN --seed -1", "--seed: -1 is out of range"),
        ("RUN --method vlb --variance learned --chain 3", "gives none"),
        ("RUN --method vlb --chain 0", "--chain: 0 is out of range"),
        ("RUN --step 9", "step 9"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, folder: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(arguments.replace("RUN", str(folder)).split())
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("jaxdiff evaluate: error: ") and message in err


@pytest.mark.nightly
def test_devices_and_processes_have_the_same_figures(folder: Path, tmp_path: Path, run_python: Any) -> None:
    """Of each method: the flow's on eight devices, the bound on those of two processes."""
    options = ("--num", "10", "--batch-size", "8", "--steps", "2")

    def values(name: str) -> dict[str, list[float]]:
        return {result["name"]: result["values"] for result in json.loads((tmp_path / name).read_text())["results"]}

    evaluate.main([str(folder), *options, "--method", "ode", "elbo", "--out", str(tmp_path / "one.json")])
    out = ("--out", tmp_path / "eight.json")
    run_python("evaluate.py", folder, *options, "--method", "ode", *out, devices=8)
    out = ("--out", tmp_path / "two.json")
    group = Group("evaluate.py", folder, *options, "--method", "elbo", *out, processes=2, devices=2)
    try:
        first, second = group.finish()
    finally:
        group.kill()
    assert "bpd elbo" in first and "bpd" not in second
    for name, method in (("eight.json", "bpd ode rademacher"), ("two.json", "bpd elbo")):
        assert values(name).keys() == {method}
        np.testing.assert_allclose(values(name)[method], values("one.json")[method], rtol=1e-4)
    assert jax.device_count() == 1
