"""`sample.py RUN --inverse`: what was measured, read from a file or made of a picture, as Python gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.codecs import Images
from jaxdiff.commands import sample
from jaxdiff.inverse.operators import Box, random_mask
from jaxdiff.inverse.problem import measure
from jaxdiff.methods.inverse import METHODS, OPERATORS
from jaxdiff.noise import sample_keys
from jaxdiff.reconstruction import reconstruct
from jaxdiff.runs.run import Run
from tests.commands.test_cli import one_line
from tests.commands.test_control import UNET, run_of

PICTURE = np.random.default_rng(1).integers(0, 256, (8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(UNET, Images((8, 8, 1)))


@pytest.fixture
def folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that loads as the run, with pictures in it."""
    monkeypatch.setattr(sample.Run, "load", lambda *arguments, **options: run)
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    Image.fromarray(PICTURE[:4, :4]).save(tmp_path / "y.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.savez(tmp_path / "y.npz", y=np.zeros(16, np.float32))
    return tmp_path


def drawn(folder: Path, options: str) -> Any:
    out = folder / "s.npz"
    given = [f"{folder}/{part}" if part.endswith((".png", ".npz")) else part for part in options.split()]
    sample.main([str(folder), "--num", "2", "--label", "1", "--out", str(out), *given])
    with np.load(out) as arrays:
        assert arrays["label"].tolist() == [1, 1]
        return arrays["x"]


def test_a_measurement_from_a_file(run: Run, folder: Path) -> None:
    """The small picture's pixels are the means of the samples', which are those of the same call in Python."""
    found = drawn(folder, "--inverse ddnm --operator box:2 --measured y.png --steps 4 --seed 3")
    expected = reconstruct(
        "ddnm", "box:2", PICTURE[:4, :4, None], run.model, key=3, n=2, cond={"label": [1, 1]}, steps=4
    )
    assert np.abs(found.astype(int) - expected["x"].astype(int)).max() <= 1
    noisy = drawn(folder, "--inverse ddrm --operator box:2 --measured y.png --steps 4 --noise 0.5 --guide cfg:2")
    assert (noisy != found).any()


def test_a_picture_that_is_measured_here(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = drawn(folder, "--inverse ddnm --operator mask:0.4 --image x.png --steps 3")
    known = np.asarray(random_mask((8, 8, 1), 0.4).known)[0, ..., 0] == 1
    np.testing.assert_array_equal(found[:, known, 0], np.stack([PICTURE[known]] * 2))
    assert (found[:, ~known, 0] != PICTURE[~known]).mean() > 0.5
    assert f"measured: {folder / 's_measured.png'}" in capsys.readouterr().out
    drawn(folder, "--inverse pigdm --operator box:2 --image x.png --steps 3 --noise 0.1 --seed 5")
    x0 = jnp.asarray(PICTURE[None, ..., None] / np.float32(255) * 2 - 1)
    y = measure(Box((8, 8, 1), 2), x0, 0.1, sample_keys(jax.random.key(5), 0, 1))
    written = np.asarray(Image.open(folder / "s_measured.png"))
    np.testing.assert_allclose(written, np.clip((np.asarray(y)[0, ..., 0] + 1) * 127.5, 0, 255), atol=0.51)
    drawn(folder, "--inverse dps --operator sensing:0.25 --image x.png --steps 3")
    with np.load(folder / "s_measured.npz") as file:
        assert file["y"].shape == (16,)
    again = drawn(folder, "--inverse dps --operator sensing:0.25 --measured s_measured.npz --steps 3")
    assert again.shape == (2, 8, 8, 1)


def test_a_mask_is_an_operator(folder: Path) -> None:
    found = drawn(folder, "--inverse repaint:rounds=1 --mask mask.png --image x.png --steps 3")
    kept = np.asarray(Image.open(folder / "mask.png")) == 0
    np.testing.assert_array_equal(found[:, kept, 0], np.stack([PICTURE[kept]] * 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--operator box:2", "--operator is of an inverse problem: name its method too"),
        ("--noise 0.1 --image x.png", "--noise is of an inverse problem"),
        ("--inverse pigmd --operator box:2 --measured y.png", "'pigmd'; did you mean 'pigdm'?"),
        ("--inverse pigdm --operator blurr:2 --measured y.png", "--operator: there is no operator 'blurr'; did you"),
        ("--inverse pigdm --measured y.png", "--operator is missing: name what was measured"),
        (
            "--inverse pigdm --operator box:2 --mask mask.png --image x.png",
            "--operator and --mask are both an operator",
        ),
        ("--inverse pigdm --operator box:2", "--inverse takes --measured FILE, or --image FILE"),
        ("--inverse pigdm --operator box:2 --measured y.png --image x.png", "--inverse takes --measured FILE, or"),
        ("--inverse pigdm --operator box:2 --measured x.png", "is 8x8x1, and box:2 of 8x8x1 measures 4x4x1"),
        ("--inverse pigdm --operator box:3 --measured y.png", "--operator: box:3"),
        ("--inverse dps --operator sensing:0.5 --measured y.npz", "is 16, and sensing:0.5 of 8x8x1 measures 32"),
        ("--inverse dps --operator sensing:0.25 --measured y.png", "measures 16 numbers, no picture: give an .npz"),
        ("--inverse pigdm --operator box:2 --measured no.png", "--measured: "),
        ("--inverse pigdm --operator phase:1 --image x.png", "needs a linear operator, and PhaseRetrieval is not"),
        ("--inverse pigdm --operator box:2 --measured y.png --noise -1", "--noise: -1.0 is out of range"),
        ("--inverse pigdm --operator box:2 --measured y.png --noise nan", "--noise: nan is out of range"),
        ("--inverse pigdm --operator box:2 --image x.png --strength 0.5", "--strength means nothing with --inverse"),
        ("--inverse ddrm --operator box:2 --measured y.png --sampler ddim", "DDRM is itself a sampler"),
    ],
)
def test_one_line_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    given = [f"{folder}/{part}" if part.endswith((".png", ".npz")) else part for part in options.split()]
    text = one_line(sample.main, [str(folder), "--out", str(folder / "s.npz"), *given], capsys)
    assert message in text


def test_help_lists_every_name() -> None:
    text = Path(sample.__file__).read_text()
    listed = text.split('"""Samples that go with')[1].split("noise:")[0]
    assert [name for name in (*METHODS, *OPERATORS) if name not in listed] == []
