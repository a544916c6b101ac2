"""Configurations that older versions have saved, in the words of this one.

Version 0.1.0 had a flat option for each number of a sampler, one dropout for labels, a weight of guidance, and the
shape of an image where now the codec stands.
"""

from __future__ import annotations

from typing import Any

from jaxdiff.methods import legacy

FLAT = ("order", "eta", "variance", "tau", "tolerance", "snr", "langevin_steps", "churn")
"""Numbers of samplers that were options of their own."""


def upgraded(saved: Any) -> Any:
    """A saved configuration, as JSON, in this version's words; one of this version as it is.

    >>> upgraded({"loss": {"label_dropout": 0.1}})["loss"]
    {'dropout': {'label': 0.1}}
    """
    if not isinstance(saved, dict):
        return saved
    new = dict(saved)
    if isinstance(loss := saved.get("loss"), dict) and "label_dropout" in loss:
        rest = {name: value for name, value in loss.items() if name != "label_dropout"}
        new["loss"] = rest | {"dropout": {"label": loss["label_dropout"]} if loss["label_dropout"] else {}}
    if isinstance(sample := saved.get("sample"), dict) and any(name in sample for name in (*FLAT, "guidance")):
        rest = {name: value for name, value in sample.items() if name not in (*FLAT, "guidance")}
        flat = {name: sample[name] for name in FLAT if name in sample}
        weight = sample.get("guidance")
        sampler = legacy(sample.get("sampler", "ddim"), **flat)
        rest |= {"sampler": "heun:t" if sampler == "heun" else sampler}  # which was Heun's method in t
        new["sample"] = rest | {"guide": [] if weight is None else [f"cfg:{weight:g}"]}
    if isinstance(data := saved.get("data"), dict) and "image_shape" in data:
        shape = data["image_shape"]
        new["data"] = {name: value for name, value in data.items() if name != "image_shape"}
        if shape is not None and saved.get("codec") is None:
            kind = {"type": "jaxdiff.codecs.Images", "shape": shape, "flip": bool(data.get("flip", False))}
            new["codec"] = kind if len(shape) == 3 else {"type": "jaxdiff.codecs.Points", "shape": shape}
    return new
