"""What a command line asks of an inverse problem: the operator, the measurement, and samples that go with it.

    jaxdiff sample runs/mnist --inverse pigdm --operator blur:2 --measured y.png --noise 0.05 --num 8
    jaxdiff sample runs/mnist --inverse ddnm --operator mask:0.4 --image seven.png --label 7

With --image the picture is measured here, with noise by --seed, and the measurement is written beside the samples.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdiff import config as cfg
from jaxdiff.commands.pictures import read_mask, read_picture
from jaxdiff.commands.published import CALL, given
from jaxdiff.config import ConfigError
from jaxdiff.data import DataError
from jaxdiff.data.decoding import decode
from jaxdiff.inverse.operators import Decoded, Operator, outside
from jaxdiff.inverse.problem import measure
from jaxdiff.methods.inverse import parse_method
from jaxdiff.model import Model
from jaxdiff.noise import sample_keys
from jaxdiff.plan import stored_shape
from jaxdiff.pretrained import Pretrained
from jaxdiff.reconstruction import measured, operator_of, reconstruct
from jaxdiff.runs.run import Run
from jaxdiff.spec import Spec

OF_INVERSE = ("operator", "measured", "noise")
"""Options that mean nothing without --inverse."""
INVERSE = ("inverse", *OF_INVERSE)
"""Options of an inverse problem."""
NOT_WITH = ("strength", "steer", "negative", "feature_cache", "compiled", *CALL, "control")
"""Options that an inverse problem does not take."""

Options = Any
"""`jaxdiff.commands.sample.Options`."""


def check_inverse(options: Options) -> None:
    """What can be refused without the run.

    Raises:
      ConfigError: an unknown method, an option that is missing or of no meaning, or one out of range.
    """
    if options.inverse is None:
        if said := list(given(options, OF_INVERSE)):
            raise ConfigError(f"--{said[0]} is of an inverse problem: name its method too, such as --inverse pigdm")
        return
    with cfg.as_config_error("--inverse"):
        parse_method(options.inverse)
    if said := list(given(options, NOT_WITH)):
        raise ConfigError(f"--{said[0]} means nothing with --inverse: leave it out")
    if (options.operator is None) == (options.mask is None):
        has = "is missing: name what was measured" if options.operator is None else "and --mask are both an operator"
        raise ConfigError(f"--operator {has}, such as --operator blur:3, or --mask mask.png alone")
    if (options.measured is None) == (options.image is None):
        raise ConfigError("--inverse takes --measured FILE, or --image FILE that is measured here: give one of them")
    if options.noise is not None and not 0 <= options.noise < math.inf:
        raise ConfigError(
            f"--noise: {options.noise} is out of range, it is the deviation of the measurement's noise, 0 or more"
        )


def operator_asked(run: Run | Pretrained, options: Options) -> Operator:
    """The operator that the options name, on the model's data.

    Raises:
      ConfigError: an unknown name or number, or one that does not fit the data.
    """
    if options.operator is None:
        shape = stored_shape(run.codec, run.shape)
        hidden = read_mask(options.mask, shape, "--mask")[..., None]
        return operator_of(run.model, outside(shape, hidden))
    with cfg.as_config_error("--operator"):
        return operator_of(run.model, options.operator)


def measurement(run: Run | Pretrained, options: Options, operator: Operator) -> NDArray[np.float32]:
    """One measurement ``(1, ...)``, read or made, in the network's units.

    Raises:
      ConfigError: a file of another size or kind.
    """
    with cfg.as_config_error("--measured" if options.image is None else "--image"):
        if options.image is None:
            return np.asarray(measured(run.model, operator, _read(options, operator, run)))
        told = operator.of_pixels if isinstance(operator, Decoded) else operator
        pixels = read_picture(options.image, stored_shape(run.codec, run.shape), "--image")
        low, high = _bounds(run.model)
        x0 = np.float32(low) + np.float32(high - low) * (pixels[None] / np.float32(255))
        keys = sample_keys(jax.random.key(options.seed), 0, 1)
        return np.asarray(measure(told, jax.numpy.asarray(x0, np.float32), options.noise or 0.0, keys))


def reconstructed(
    run: Run | Pretrained, options: Options, num: int, cond: Mapping[str, Any] | None, start: int = 0
) -> dict[str, NDArray[Any]]:
    """Samples ``start`` to ``start + num - 1`` that go with the measurement: a record.

    Raises:
      ConfigError: a problem that the method cannot take.
    """
    operator = operator_asked(run, options)
    y = measurement(run, options, operator)
    with cfg.as_config_error("--inverse"):
        record: dict[str, NDArray[Any]] = reconstruct(
            options.inverse,
            operator,
            y,
            run.model,
            noise=options.noise or 0.0,
            key=options.seed,
            n=num,
            cond=cond,
            sampler=options.sampler,
            steps=options.steps,
            grid=options.grid,
            guide=options.guide if options.guidance is None else options.guidance,
            batch_size=options.batch_size,
            start=start,
        )
    return record


def write_measurement(run: Run | Pretrained, options: Options, out: Path) -> Path:
    """Writes the measurement of --image beside the samples: a PNG where it is a picture, else an .npz with ``y``.

    Returns:
      The file: ``samples_measured.png`` beside ``samples.png``.
    """
    operator = operator_asked(run, options)
    y = measurement(run, options, operator)[0]
    told = operator.of_pixels if isinstance(operator, Decoded) else operator
    stem = out.with_suffix("").name + "_measured"
    if not (told.pictured and y.ndim == 3 and y.shape[2] in (1, 3)):
        file = out.with_name(stem + ".npz")
        np.savez(file, y=y)
        return file
    low, high = _bounds(run.model)
    pixels = np.clip(np.round((y - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    file = out.with_name(stem + ".png")
    Image.fromarray(pixels[..., 0] if y.shape[2] == 1 else pixels).save(file)
    return file


def _read(options: Options, operator: Operator, run: Run | Pretrained) -> NDArray[Any]:
    """The file of a measurement, of the size that the operator makes."""
    file, name = options.measured.expanduser(), options.operator or "the mask"
    told = operator.of_pixels if isinstance(operator, Decoded) else operator
    wanted = operator.measured
    if file.suffix in (".npz", ".npy"):
        try:
            found = np.load(file, allow_pickle=False)
            y: NDArray[Any] = found if isinstance(found, np.ndarray) else found["y" if "y" in found else found.files[0]]
        except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--measured: {file} cannot be read: {error}") from error
    else:
        if not (told.pictured and len(wanted) == 3 and wanted[2] in (1, 3)):
            raise ConfigError(f"--measured: {name} measures {_sides(wanted)} numbers, no picture: give an .npz with y")
        try:
            y = decode(file.read_bytes(), str(file))
        except (OSError, DataError) as error:
            raise ConfigError(f"--measured: {error}") from error
        if y.shape[2] != wanted[2]:
            kind = "L" if wanted[2] == 1 else "RGB"
            y = np.asarray(Image.fromarray(y[..., 0] if y.shape[2] == 1 else y).convert(kind))
            y = y.reshape(*y.shape[:2], wanted[2])
    if y.shape not in (wanted, (1, *wanted)):
        data = _sides(stored_shape(run.codec, run.shape))
        raise ConfigError(f"--measured: {file} is {_sides(y.shape)}, and {name} of {data} measures {_sides(wanted)}")
    return y


def _bounds(model: Model) -> tuple[float, float]:
    """The range of pictures in the network's units."""
    codec: Any = getattr(model.codec, "images", model.codec)
    spec = codec.spec["x"]
    bounds = spec.clip if isinstance(spec, Spec) else None
    if bounds is None:
        raise ConfigError("--image: this model draws no pictures: give --measured FILE.npz")
    return bounds


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
