"""What a configuration says of text: its tokenizer, and how that goes with the data and the network."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdiff.config.schema import Kind, RunConfig
from jaxdiff.data.sources import DataError, Source, captions, name_of, spread, texts
from jaxdiff.data.text import TEXT, Tokenised, count
from jaxdiff.data.tokenizers import spec_of
from jaxdiff.launch.errors import ConfigError, as_config_error
from jaxdiff.spec import Spec

COUNTED = 10_000
"""Most records whose captions are counted before the first step."""


def has_captions(source: Source) -> bool:
    """Whether a source has captions, under the name "text"."""
    spec = source.spec.get(TEXT)
    return isinstance(spec, Spec) and spec.is_text


def with_tokenizer(config: Kind, source: Source) -> Kind:
    """The configuration with what its tokenizer learns of the training captions.

    Every process reads the captions by itself and learns the same. A run that goes on has its vocabulary already.

    Raises:
      ConfigError: a tokenizer and no text that the network takes, or text and no tokenizer.
      DataError: captions that cannot be read.
    """
    tokenizer, captioned = config.tokenizer, has_captions(source)
    if other := [name for name, spec in source.spec.items() if name != TEXT and spec.is_text]:
        raise DataError(
            f"{name_of(source)}: {other[0]} is text, which is taken under the name {TEXT!r} alone: rename it"
        )
    if config.data.cache_text and TEXT not in getattr(config.codec, "reads", ()):
        raise ConfigError(
            "data.cache_text: there is no frozen text encoder whose states could be kept: leave it out, or give one, "
            "codec=WithText(...)"
        )
    if tokenizer is None and captioned:
        raise ConfigError(
            "tokenizer: the network takes text, and the data have captions: give what makes numbers of them, for "
            "instance tokenizer=Words(16, size=1000)"
        )
    if tokenizer is not None and TEXT not in config.cond:
        raise ConfigError(
            "tokenizer: the network takes no text: give it the condition Text('text', ...), or leave the tokenizer out"
        )
    if not captioned or not hasattr(tokenizer, "resolved"):
        return config

    return dataclasses.replace(config, tokenizer=tokenizer.resolved(lambda: captions(source)))


def tokenised(config: RunConfig, source: Source) -> Source:
    """The source as a training step is given it: captions are numbers. Another source as it is."""
    return source if config.tokenizer is None or not has_captions(source) else Tokenised(source, config.tokenizer)


def captions_said(config: RunConfig, source: Source) -> list[str]:
    """Lines on captions that are cut and on words that are unknown; none where all fit."""
    tokenizer = config.tokenizer
    if not has_captions(source) or not (hasattr(tokenizer, "ids") and hasattr(tokenizer, "unknown_in")):
        return []
    chosen = spread(len(source), COUNTED)
    counts = count(
        tokenizer, (text for each in texts(source, chosen) for text in ([each] if isinstance(each, str) else each))
    )
    lines = counts.lines(tokenizer.length, whole=len(chosen) == len(source))
    if hasattr(config.codec, "negative"):  # a published text encoder takes no more
        lines = [line.partition(": raise it")[0] for line in lines]
    return lines


def check_text(config: RunConfig, condition: Any) -> None:
    """Whether what the network takes as text is what the tokenizer gives.

    Args:
      config: with a tokenizer, resolved.
      condition: the spec of the network's text; that of embeddings, which a frozen encoder makes, passes.

    Raises:
      ConfigError: they differ in their number of ids, their length, or the empty caption.
    """
    tokenizer = config.tokenizer
    if tokenizer is None or not isinstance(condition, Spec):
        return
    with as_config_error("tokenizer"):
        given = spec_of(tokenizer)
    assert isinstance(given, Spec)
    if condition.high is not None and tokenizer.size > condition.high + 1:
        raise ConfigError(
            f"tokenizer.size: it has {tokenizer.size:,} ids, and the network's text takes {condition.high + 1:,.0f}, "
            "its vocabulary: set both to one number"
        )
    if condition.shape not in ((None,), given.shape):
        raise ConfigError(
            f"tokenizer.length: it gives {tokenizer.length} ids of a caption, and the network's text takes "
            f"{condition.shape[0]}, its length: set both to one number"
        )
    if condition.null is not None and condition.null != given.null:
        raise ConfigError(
            f"network: the null of its text is {_brief(condition.null)}, and the tokenizer makes {_brief(given.null)} "
            "of the empty caption: set the text's null to that"
        )


def _brief(null: Any) -> str:
    shown = ", ".join(map(str, null[:8])) if isinstance(null, tuple) else str(null)
    return f"({shown}{', ...' if isinstance(null, tuple) and len(null) > 8 else ''})"
