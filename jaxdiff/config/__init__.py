"""A run's configuration: what it is (`schema`), what is made of it (`build`), how it is stored (`serialize`, `folder`),
and how the command line changes it (`command_line`). What a program starts with stands in `jaxdiff.launch`."""

from typing import TYPE_CHECKING

from jaxdiff.config.autoencoder import AutoencoderConfig
from jaxdiff.config.batches import batch_shapes, buckets_said, build_pipeline, codec_of_buckets, with_buckets
from jaxdiff.config.build import (
    OBJECTIVES,
    SOURCES,
    build_codec,
    build_defaults,
    build_loss,
    build_network,
    build_source,
    check,
    computing_in,
    resolve,
)
from jaxdiff.config.classifier import ClassifierConfig
from jaxdiff.config.folder import check_folder, claim_folder, finder, read_config, with_saved
from jaxdiff.config.inversion import check_captions, first_vectors, with_word
from jaxdiff.config.lora import with_base_frozen
from jaxdiff.config.ranges import doubts
from jaxdiff.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    FrozenWeights,
    InversionConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from jaxdiff.config.serialize import TRUSTED, StoredTypeError, differences, dumps, from_json, to_json
from jaxdiff.config.stored import with_conditions
from jaxdiff.config.text import captions_said, has_captions, tokenised
from jaxdiff.config.trust import trust_options
from jaxdiff.launch.distributed import ProcessOptions, as_lead, join, lead_first
from jaxdiff.launch.errors import ConfigError, as_config_error
from jaxdiff.launch.first_line import first_line
from jaxdiff.launch.program import about, command, program
from jaxdiff.launch.start import StartOptions, keep_compiled, set_up
from jaxdiff.lazy import lazily

if TYPE_CHECKING:
    from jaxdiff.config.command_line import (
        TrainOptions,
        load_config_file,
        one_line_errors,
        parse,
        parse_config,
    )

_COMMAND_LINE = ("TrainOptions", "load_config_file", "one_line_errors", "parse", "parse_config")
__getattr__ = lazily(__name__, dict.fromkeys(_COMMAND_LINE, "command_line"))

__all__ = [
    "OBJECTIVES",
    "SOURCES",
    "TRUSTED",
    "AutoencoderConfig",
    "CheckpointConfig",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "FrozenWeights",
    "InversionConfig",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "OptimizerConfig",
    "ProcessOptions",
    "RunConfig",
    "SampleConfig",
    "StartOptions",
    "StoredTypeError",
    "TrainConfig",
    "TrainOptions",
    "about",
    "as_config_error",
    "as_lead",
    "batch_shapes",
    "buckets_said",
    "build_codec",
    "build_defaults",
    "build_loss",
    "build_network",
    "build_pipeline",
    "build_source",
    "captions_said",
    "check",
    "check_captions",
    "check_folder",
    "claim_folder",
    "codec_of_buckets",
    "command",
    "computing_in",
    "differences",
    "doubts",
    "dumps",
    "finder",
    "first_line",
    "first_vectors",
    "from_json",
    "has_captions",
    "join",
    "keep_compiled",
    "lead_first",
    "load_config_file",
    "one_line_errors",
    "parse",
    "parse_config",
    "program",
    "read_config",
    "resolve",
    "set_up",
    "to_json",
    "tokenised",
    "trust_options",
    "with_base_frozen",
    "with_buckets",
    "with_conditions",
    "with_saved",
    "with_word",
]
