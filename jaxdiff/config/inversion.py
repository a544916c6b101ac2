"""A new word in a configuration: tokenizers and text encoders have ids more, and all weights but its vectors stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from jaxdiff.config.schema import Config, InversionConfig, Kind
from jaxdiff.config.text import COUNTED, TEXT, has_captions
from jaxdiff.data.added_words import AddedWord, WithWords
from jaxdiff.data.sources import DataError, Source, name_of, spread, texts
from jaxdiff.data.templates import TEMPLATES, WithTemplates
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.launch.errors import ConfigError
from jaxdiff.pretrained.adapters.inversion import BASE, ENCODERS, WORDS, TextualInversion
from jaxdiff.pretrained.text_codec import PublishedText, Several

FROZEN = (BASE, ENCODERS)


def with_word(config: Kind) -> Kind:
    """A configuration whose tokenizers and text encoders have the ids of ``inversion.word``, and whose other weights
    are not trained; others as they are.

    Raises:
      ConfigError: a model without CLIP's encoders; a word that they know, or one to begin with that they do not; other
        options that do not go with it.
    """
    inversion = getattr(config, "inversion", InversionConfig())
    if inversion.word is None:
        if inversion != InversionConfig():
            raise ConfigError(
                "inversion.word: there is none, and other options of inversion are given: name it, for instance "
                "'<cat-toy>'"
            )
        return config
    assert isinstance(config, Config)
    _refuse(config)
    made: list[Any] = []
    for part, tokenizer, words in _tokenizers(config):
        net = config.codec.clip.get(part)
        if net is not None:
            words = (*words, AddedWord(inversion.word, net.config.vocabulary, inversion.vectors))
        made.append(WithWords(tokenizer, words) if words else tokenizer)
    return dataclasses.replace(
        config,
        tokenizer=made[0] if len(made) == 1 else Several(tuple(made)),
        codec=dataclasses.replace(config.codec, vectors=inversion.vectors),
        train=dataclasses.replace(config.train, freeze=FROZEN),
    )


def _refuse(config: Config) -> None:
    word, codec = config.inversion.word or "", config.codec
    if not word or word != word.strip():
        raise ConfigError(f"inversion.word: expected a word without blanks around it, got {word!r}")
    if not isinstance(codec, PublishedText):
        raise ConfigError(
            "inversion.word: a word is one of a published model's text encoders, and this configuration has none: "
            "jaxdiff train FOLDER"
        )
    if not codec.clip:
        raise ConfigError(f"inversion.word: a word is one of CLIP's text encoders, and {codec.path} has T5's alone")
    together = {
        "lora.rank": bool(config.lora.rank),
        "train.freeze": config.train.freeze not in ((), FROZEN),
        "data.cache_text": config.data.cache_text,
        "loss.prior": config.loss.prior is not None,
        "loss.dropout": config.loss.dropout.get(TEXT, 0) > 0,
    }
    for option, given in together.items():
        if given:
            raise ConfigError(
                f"{option}: with inversion.word the word alone is trained, of texts that hold it: leave it out"
            )
    if config.inversion.init is None:
        raise ConfigError("inversion.init: say which word it begins as, for instance --inversion.init toy")
    for part, tokenizer, words in _tokenizers(config):
        known = word.lower() in [each.word.lower() for each in words] or tokenizer.knows(word)
        if part in codec.clip and (known or len(tokenizer.ids(word)) == 3):
            raise ConfigError(f"inversion.word: {tokenizer.path} knows {word!r}: take another, for instance <{word}>")
    _ids_of_init(config)


def _tokenizers(config: Config) -> Iterator[tuple[str, TokenizerFile, tuple[AddedWord, ...]]]:
    """The published tokenizers by the folders of their encoders, and the words that these have beside them."""
    given: Any = config.tokenizer
    several = given.tokenizers if isinstance(given, Several) else (given,)
    files = [each.tokenizer if isinstance(each, WithWords) else each for each in several]
    if len(files) != len(config.codec.parts) or not all(isinstance(each, TokenizerFile) for each in files):
        raise ConfigError("tokenizer: with inversion.word it is the published model's: leave it out")
    for part, file, tokenizer in zip(config.codec.parts, files, several, strict=True):
        net, words = config.codec.clip.get(part), getattr(tokenizer, "words", ())
        yield part, file, tuple(each for each in words if net is None or each.first < net.config.vocabulary)


def _ids_of_init(config: Config) -> dict[str, int]:
    """The id of the word to begin with, by the folders of CLIP's encoders."""
    found, init = {}, config.inversion.init or ""
    for part, tokenizer, _ in _tokenizers(config):
        if part in config.codec.clip:
            ids = tokenizer.ids(init)[1:-1]
            if len(ids) != 1:
                raise ConfigError(
                    f"inversion.init: {init!r} is {len(ids)} ids of {tokenizer.path}, expected a word of one id"
                )
            found[part] = ids[0]
    return found


def with_inversion(config: Any, net: Any) -> Any:
    """A network that takes ids, with the vectors of the word, where a configuration from `with_word` asks for that.

    Args:
      config: of a run.
      net: its network, as pure functions.
    """
    return TextualInversion(net, config.codec) if getattr(config.codec, "vectors", 0) else net


def first_vectors(config: Any, net: TextualInversion, encoders: Any, template: Any) -> Any:
    """The trained parameters to begin with, where they belong: the vectors of ``inversion.init``.

    Args:
      config: of a run, from `with_word`.
      net: from `with_inversion`.
      encoders: parameters of the text encoders.
      template: of the trained parameters, with shardings.
    """
    ids = _ids_of_init(config)
    begin = jax.jit(lambda encoders: net.begun(encoders, ids), out_shardings=_shardings(template[WORDS]))
    return {WORDS: begin(encoders)}


def _shardings(template: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, template)


def with_templates(source: Source, config: Any) -> Source:
    """Data without text with captions that hold the word; with text, or without a word to train, as they are."""
    inversion = getattr(config, "inversion", InversionConfig())
    if inversion.word is None or TEXT in source.spec:
        return source
    return WithTemplates(source, TEMPLATES[inversion.kind], inversion.word)


def check_captions(config: Any, source: Source) -> None:
    """Refuses captions without the word, of which it would learn nothing.

    Raises:
      DataError: with the first of them.
    """
    word = getattr(config, "inversion", InversionConfig()).word
    if word is None or not has_captions(source):
        return
    several = [[each] if isinstance(each, str) else each for each in texts(source, spread(len(source), COUNTED))]
    captions = [text for each in several for text in each]
    if without := [text for text in captions if word.lower() not in text.lower()]:
        raise DataError(
            f"{name_of(source)}: {len(without):,} of {len(captions):,} captions do not hold {word!r}, such as "
            f"{without[0]!r}: put it where the thing is named, or leave those records out"
        )
