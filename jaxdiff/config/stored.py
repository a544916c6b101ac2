"""Which conditions a configuration reads of its data, and what the data must hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxdiff.config.inversion import with_templates
from jaxdiff.config.schema import RunConfig
from jaxdiff.data.sources import DataError, Source, name_of
from jaxdiff.data.subset import Subset
from jaxdiff.spec import Spec


def stored_conditions(config: RunConfig) -> tuple[str, ...]:
    """The conditions that the network takes and the codec does not make, or makes of what is stored under that name;
    and what the codec reads under a name of its own: the source's part. Settings of a call, which the network names,
    are in no data."""
    made = {} if config.codec is None else config.codec.spec
    reads, settings = getattr(config.codec, "reads", ()), getattr(config.network, "settings", ())
    taken = [name for name in config.cond if name not in settings and (name not in made or name in reads)]
    return (*taken, *(name for name in codec_reads(config.codec) if name not in taken))


def codec_reads(codec: Any) -> Mapping[str, Spec]:
    """What a codec, or one within it, reads of a record beside x and the conditions, and its bounds."""
    if codec is None:
        return {}
    return {**codec_reads(getattr(codec, "inner", None)), **getattr(codec, "stored", {})}


def with_conditions(source: Source, config: RunConfig) -> Source:
    """The source with the conditions that training reads, and no others; ids of maps within their classes.

    Raises:
      DataError: it lacks one, or has one of another shape or type of numbers.
    """
    taken, bounds, source = stored_conditions(config), codec_reads(config.codec), with_templates(source, config)
    if missing := [name for name in taken if name not in source.spec]:
        has = ", ".join(name for name in source.spec if name != "x") or "none"
        who = "the codec reads" if missing[0] in bounds else "the network is conditioned on"
        how = "leave it out of the network, " if missing[0] not in bounds else ""
        how += "add it to the data, or give a codec that makes it" if how else "add it to the data"
        raise DataError(
            f"{name_of(source)}: {who} {missing[0]}, which is not in the data (its conditions: {has}); {how}"
        )
    if not bounds and set(source.spec) == {"x", *taken}:
        return source
    return Subset(source, names=taken, bounds=bounds)
