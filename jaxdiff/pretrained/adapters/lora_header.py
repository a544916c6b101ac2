"""The header of a LoRA's file in PEFT's layout: ``lora_adapter_metadata``, a JSON object whose fields are those of
`peft.LoraConfig` after the name of the network. It says ranks and alphas, by patterns for modules that differ.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.pretrained.errors import PretrainedError

METADATA = "lora_adapter_metadata"
_BASE_CHANGED = ("pissa", "olora", "loftq", "corda", "lora_ga")  # ways to begin that change W itself
_NOT_FOLLOWED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
)


def header_of(parts: Mapping[str, Mapping[str, tuple[int, float]]]) -> str:
    """What the header says of ranks and alphas: the most frequent ones of a network, and the others by module.

    Args:
      parts: rank and alpha by the names of networks and modules.

    >>> header = json.loads(header_of({"unet": {"a": (4, 2.0), "b": (4, 2.0), "c": (4, 8.0)}}))
    >>> header["unet.r"], header["unet.lora_alpha"], header["unet.alpha_pattern"]
    (4, 2, {'^c': 8})
    """
    fields: dict[str, Any] = {}
    for part, modules in parts.items():
        fields |= {f"{part}.{name}": value for name, value in _configuration(part, modules).items()}
    return json.dumps(fields, indent=2, sort_keys=True)


def _configuration(part: str, modules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """The fields of `peft.LoraConfig` that say ranks and alphas."""

    def usual(values: list[Any]) -> Any:
        return max(dict.fromkeys(values), key=values.count)

    def others(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
        # Patterns of PEFT match ends of names: "^" makes one a whole name. CLIP's may have a folder before them.
        anchor = "" if part.startswith("text_encoder") else "^"
        return {f"{anchor}{re.escape(name)}": value for name, value in values.items() if value != usual}

    ranks = {name: rank for name, (rank, _) in modules.items()}
    alphas = {name: _number(alpha) for name, (_, alpha) in modules.items()}
    rank, alpha = usual([*ranks.values()]), usual([*alphas.values()])
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": others(ranks, rank),
        "alpha_pattern": others(alphas, alpha),
        "target_modules": sorted(modules),
        "peft_type": "LORA",
    }


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def alpha_of(header: str | None, where: str) -> Callable[[str, str, int], float]:
    """``(part, module, rank) -> alpha``, as a header says it; where it says nothing, r.

    Args:
      header: its text; None: there is none.
      where: the file, for messages.

    Raises:
      PretrainedError: it cannot be read, or says something that jaxdiff does not follow; at the call too.
    """
    try:
        fields = json.loads(header or "{}")
        if not isinstance(fields, dict):
            raise ValueError(f"is a {type(fields).__name__}, expected an object")
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f"{where}: {METADATA} of its header cannot be read ({error})") from error
    for name, value in fields.items():
        field = name.rpartition(".")[2]
        if field in _NOT_FOLLOWED and value:
            raise PretrainedError(f"{where}: {name} is {value!r}, which jaxdiff does not follow")
        if field == "init_lora_weights" and str(value).startswith(_BASE_CHANGED):
            raise PretrainedError(f"{where}: {name} is {value!r}, which changes the model's own weights too")

    def alpha(part: str, module: str, rank: int) -> float:
        patterns = fields.get(f"{part}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise PretrainedError(f"{where}: {part}.alpha_pattern is a {type(patterns).__name__}, expected an object")
        try:
            chosen = next((each for each in patterns if re.match(rf"(.*\.)?({each})$", module)), None)
        except re.error as error:
            raise PretrainedError(f"{where}: {part}.alpha_pattern cannot be read ({error})") from error
        value = fields.get(f"{part}.lora_alpha") if chosen is None else patterns[chosen]
        if value is None:
            return float(rank)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PretrainedError(f"{where}: alpha of {part}.{module} is {value!r}, expected a number")
        # PEFT's use_rslora divides by the root of r: an alpha that makes it alpha / r
        return float(value) * (math.sqrt(rank) if fields.get(f"{part}.use_rslora") else 1.0)

    return alpha
