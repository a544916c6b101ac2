"""What a command line asks of a model: conditions, prompts, guidance."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdiff import config as cfg
from jaxdiff.commands.pictures import read_ids, read_picture
from jaxdiff.config import ConfigError
from jaxdiff.data.text import TEXT, given_captions
from jaxdiff.networks.control import PICTURE, SCALE
from jaxdiff.plan import stored_shape
from jaxdiff.pretrained import Pretrained
from jaxdiff.request import contrasts
from jaxdiff.runs.cascade import Cascade
from jaxdiff.runs.prompts import rows_of_labels, rows_of_prompts
from jaxdiff.runs.run import Run
from jaxdiff.spec import Spec, check

Options = Any
"""`jaxdiff.commands.sample.Options`."""
Sampled = Run | Pretrained | Cascade
"""What a command line can draw from."""


def conditions(run: Sampled, options: Options) -> tuple[dict[str, Any] | None, int, int | None]:
    """The conditions that the options ask for, the number of samples, and the columns of a picture."""
    given = {}
    for text in options.cond:
        name, equals, value = text.partition("=")
        if not equals or name not in run.model.conditions:
            known = ", ".join(run.model.conditions) or "none"
            raise ConfigError(f"--cond: {text!r} is no NAME=VALUE of this run's conditions ({known})")
        if name in given or (name == "label" and options.label):
            raise ConfigError(f"{name} is given twice: give it once, by --label or by --cond")
        given[name] = _value(name, value)
    labels = [_label(run, text) for text in options.label] if "label" not in given else []
    prompts = prompts_of(run, options)
    control = control_of(run, options)
    if control and PICTURE in given:
        raise ConfigError("control is given twice: give it once, by --control or by --cond")
    if prompts and TEXT in given:
        raise ConfigError("text is given twice: give it once, by --prompt or by --cond")
    shown = run.num_classes if "label" not in given and (labels or not (prompts or control)) else None
    num, columns = options.num, None
    if num is None and control and not (labels or prompts):
        num = 10
    if num is None and isinstance(run, Pretrained):  # whose samples take longer
        num = len(prompts) or (None if shown else 4)
    if run.model.draw_cond is not None and not (
        given or labels or prompts or control
    ):  # of training records, labels among them
        return None, num or 64, None
    if num is not None and num < len(prompts):
        raise ConfigError(f"--num {num}: {len(prompts)} prompts need {len(prompts)} samples or more: raise --num")
    with cfg.as_config_error("--num"):  # more than memory has
        if prompts:
            which, columns = rows_of_prompts(prompts, num)
            num, given[TEXT] = len(which), np.array(prompts)[which]
        rows, across = rows_of_labels(shown, num, labels) if run.num_classes or labels else (None, None)
    num = len(rows["label"]) if rows else num or 64
    for name, value in control.items():  # one a sample: rows of a map are not taken for samples
        given[name] = np.broadcast_to(value, (num, *value.shape))
    cond = {**(rows or {}), **given}
    asked = bool(options.guide or options.guidance is not None)
    if not cond and asked and contrasts(guide_of(run, options)):
        ways = [
            option
            for option, there in (("--prompt", TEXT in run.model.encoders), ("--cond", run.model.conditions))
            if there
        ]
        how = f"add {' or '.join(ways)}, or leave it out" if ways else "this run has none: leave it out"
        raise ConfigError(f"{'--guide' if options.guide else '--guidance'} leads towards a condition: {how}")
    return cond or None, num, columns or across


def control_of(run: Sampled, options: Options) -> dict[str, NDArray[Any]]:
    """What the options tell a run's ControlNet: its picture, from 0 to 1, or its map of classes; and its scale. A
    published model is told in its call.

    Raises:
      ConfigError: a run without a ControlNet or with several, or a file that does not fit it.
    """
    if isinstance(run, Pretrained) or (options.control is None and options.control_scale is None):
        return {}
    spec = run.model.conditions.get(PICTURE)
    if not isinstance(spec, Spec):
        has = "no ControlNet: leave it out" if spec is None else f"several ({', '.join(spec)}): give them in Python"
        raise ConfigError(f"--{'control_scale' if options.control is None else 'control'}: this run has {has}")
    if options.control is None:
        raise ConfigError("--control_scale is of the picture in --control: give it too")
    if len(spec.shape) == 2:
        picture: NDArray[Any] = read_ids(options.control, spec.shape, "--control")
        with cfg.as_config_error(f"--control: {options.control}"):
            encode = run.model.encoders.get(PICTURE, np.asarray)
            check({PICTURE: spec}, {PICTURE: encode(picture)}, 1)
    else:
        sides = stored_shape(run.codec, run.shape)[:2]
        shape = (*(side or usual for side, usual in zip(spec.shape, sides, strict=False)), int(spec.shape[2] or 0))
        picture = read_picture(options.control, shape, "--control") / np.float32(255)
    scale = {} if options.control_scale is None else {SCALE: np.asarray(options.control_scale, np.float32)}
    return {PICTURE: picture, **scale}


def prompts_of(run: Sampled, options: Options) -> list[str]:
    """The prompts that the options ask for.

    Raises:
      ConfigError: a run that knows no text, or a file that cannot be read.
    """
    asked = {"--prompt": options.prompt, "--prompts": options.prompts, "--negative": options.negative}
    if TEXT not in run.model.encoders and (names := [name for name, value in asked.items() if value not in ((), None)]):
        raise ConfigError(f"{names[0]}: this {_kind(run)} was trained without text: leave it out")
    if options.negative is not None and not contrasts(guide_of(run, options)):
        raise ConfigError(
            "--negative is what guidance leads away from, and there is no guidance: add --guidance 2, or leave it out"
        )
    if options.prompts is None:
        return list(options.prompt)
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts: {options.prompts} cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"--prompts: {options.prompts} is empty, expected one prompt a line")
    return [*options.prompt, *lines]


def say_doubts(run: Sampled, cond: Mapping[str, Any] | None) -> None:
    """Says on stderr which prompts are cut, and which of their words the run does not know."""
    for line in run.doubts(given_captions((cond or {}).get(TEXT)) or ()):
        if jax.process_index() == 0:
            print(f"WARNING: {line}", file=sys.stderr, flush=True)


def _label(run: Sampled, text: str) -> int:
    classes = run.classes
    if text in classes:
        return classes.index(text)
    try:
        return int(text)
    except ValueError:
        known = f"; there are {', '.join(classes[:20])}" if classes else ""
        known += "; several stand apart, as in --label 3 5" if "," in text else ""
        raise ConfigError(f"--label: {text!r} is neither a number nor the name of a class{known}") from None


def _value(name: str, text: str) -> Any:
    if text.endswith(".npy"):
        try:
            return np.load(Path(text).expanduser(), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--cond: {name}: {text} cannot be read: {error}") from error
    try:
        numbers = [float(part) if any(letter in part for letter in ".en") else int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--cond: {name}: {text!r} is to be numbers with commas, or a .npy file") from None
    return np.asarray(numbers[0] if len(numbers) == 1 and "," not in text else numbers)


def guide_of(run: Sampled, options: Options) -> tuple[str, ...]:
    """The guidance that the options ask for, or else the run's."""
    if options.guidance is not None:
        return (f"cfg:{options.guidance:g}",)
    return tuple(map(str, run.model.defaults.guide)) if options.guide is None else options.guide


def _kind(run: Sampled) -> str:
    return "run" if isinstance(run, Run) else "model"
