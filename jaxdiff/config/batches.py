"""From a configuration's data to the batches that training reads: of one size, or of as many as there are buckets."""

from __future__ import annotations

from typing import Any

import jax

import jaxdiff.data
from jaxdiff.codecs import AnySize
from jaxdiff.codecs.recipe import innermost
from jaxdiff.config.schema import Config, RunConfig
from jaxdiff.config.text import TEXT, tokenised
from jaxdiff.data.buckets import Bucketed, bucket_sizes, buckets_of, in_buckets
from jaxdiff.data.decoded import decoded_bytes
from jaxdiff.data.encoded import Encoded
from jaxdiff.data.sources import Source
from jaxdiff.data.tokenizers import Encoder
from jaxdiff.launch.errors import ConfigError, as_config_error
from jaxdiff.spec import Specs, shapes


def check_buckets(config: RunConfig) -> None:
    """What can be wrong with ``data.buckets`` before the data are known.

    Raises:
      ConfigError: what is.
    """
    data = config.data
    if not data.buckets:
        return
    if data.image_size is None:
        raise ConfigError("data.buckets: set data.image_size, the side of a square of the buckets' area, such as 512")
    with as_config_error("data.buckets"):
        bucket_sizes(data.image_size, data.bucket_multiple, data.bucket_ratio)
    if config.train.steps_per_call > 1:
        raise ConfigError(
            "train.steps_per_call: steps of one call take batches of one size, and data.buckets makes several: leave "
            "one of them out"
        )
    if isinstance(config, Config) and config.loss.prior is not None:
        raise ConfigError(
            "loss.prior: the pictures of the class are square, and those of data.buckets, beside which they stand in a "
            "batch, are not: leave one of them out"
        )


def with_buckets(config: RunConfig, source: Source, *, cache: bool = True) -> Source:
    """The pictures in buckets of aspect ratios, where ``data.buckets`` asks for them; else the source as it is.

    Args:
      config: resolved.
      source: from `build_source`.
      cache: keep the pictures' sizes in the user's cache folder.

    Raises:
      DataError: data that are no pictures of many sizes, or one whose file is damaged.
    """
    data = config.data
    if not data.buckets:
        return source
    assert data.image_size is not None, "check it first"
    told = bool(getattr(config.codec, "sizes", ()))
    options: dict[str, Any] = {"multiple": data.bucket_multiple, "ratio": data.bucket_ratio, "sizes": told}
    return in_buckets(source, data.image_size, **options, keep=cache)


def codec_of_buckets(codec: Any, source: Source) -> Any:
    """What a step is given in the place of its codec where batches have several sizes; else the codec.

    Raises:
      ConfigError: a codec of one size.
    """
    if not isinstance(source, Bucketed):
        return codec
    inner = innermost(codec)
    if not (hasattr(inner, "sized") and hasattr(codec, "sized")):
        raise ConfigError(f"data.buckets: {type(inner).__name__} (codec) is of one size; leave one of them out")
    return AnySize(codec)


def buckets_said(source: Source, batch_size: int) -> list[str]:
    """A line on the buckets of a source; none where it has none."""
    if not isinstance(source, Bucketed):
        return []
    sides = ["x".join(map(str, bucket.spec["x"].shape[:2])) for bucket in source.buckets]
    counts = [f"{side} ({len(bucket):,})" for side, bucket in zip(sides, source.buckets, strict=True)]
    few = any(len(bucket) < batch_size for bucket in source.buckets)
    more = f"; records of a bucket of fewer than {batch_size} repeat within a batch" if few else ""
    return [f"{len(sides)} buckets, height x width (records): {', '.join(counts)}{more}"]


def build_pipeline(
    config: RunConfig,
    source: Source,
    *,
    cache: bool = True,
    part: tuple[int, int] = (0, 1),
    text: Encoder | None = None,
) -> jaxdiff.data.Pipeline:
    """This process's part of the training batches.

    A run that reads every record at least once reads them decoded (`jaxdiff.data.decode_once`), as ``data.decoded_mb``
    allows; then there is nothing left for ``data.workers`` to decode, and threads are faster.

    Args:
      config: the configuration.
      source: from `build_source`, or `with_buckets`; or its cache, `jaxdiff.train.read_cached`.
      cache: False keeps no decoded images, and reads none kept.
      part: (p, P), which of P parts of each batch this process reads (`jaxdiff.train.batch_part`).
      text: what makes numbers of captions; None: the configuration's tokenizer.

    Raises:
      DataError: an image that cannot be decoded, where they are decoded now.
    """
    whole_pass = config.train.steps * config.train.batch_size >= len(source)
    chosen = _decoded(source, config.data.decoded_mb * 10**6) if cache and whole_pass else source
    text = config.tokenizer if text is None else text
    encoded = all(isinstance(each, Encoded) for each in buckets_of(source))
    return jaxdiff.data.Pipeline(
        chosen,
        batch_size=config.train.batch_size,
        seed=config.seed,
        workers=config.data.workers if chosen is source and not encoded else 0,
        process_index=part[0],
        process_count=part[1],
        tokenizer=text,
    )


def _decoded(source: Source, limit: int) -> Source:
    if not isinstance(source, Bucketed):
        return jaxdiff.data.decode_once(source, limit=limit)
    if sum(map(decoded_bytes, source.buckets)) > limit:
        return source
    return source.mapped(lambda bucket: jaxdiff.data.decode_once(bucket, limit=limit))


def batch_shapes(config: RunConfig, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of stored records over all devices, captions as a step is given them.

    Args:
      config: resolved.
      source: of records of one size.
    """
    specs: Specs = tokenised(config, source).spec
    if config.data.cache_text:
        specs = {**specs, TEXT: config.codec.spec[TEXT]}
    return shapes(specs, config.train.batch_size)
