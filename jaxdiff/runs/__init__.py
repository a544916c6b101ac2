"""Trained runs: one reloaded (`Run`, `AutoencoderRun`, `ClassifierRun`), several one after the other (`Cascade`), many
samples of one in a folder (`shards`), and the list of all (`listing`)."""

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazily

if TYPE_CHECKING:
    from jaxdiff.runs.autoencoder import AutoencoderRun
    from jaxdiff.runs.cascade import Cascade, Stage
    from jaxdiff.runs.classifier import ClassifierRun
    from jaxdiff.runs.listing import RunError, Status, read_status
    from jaxdiff.runs.prompts import rows_of_labels
    from jaxdiff.runs.run import Run
    from jaxdiff.runs.shards import load_samples

__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(("RunError", "Status", "read_status"), "listing"),
        "Run": "run",
        "rows_of_labels": "prompts",
        "AutoencoderRun": "autoencoder",
        "ClassifierRun": "classifier",
        "Cascade": "cascade",
        "Stage": "cascade",
        "load_samples": "shards",
    },
)

__all__ = [
    "AutoencoderRun",
    "Cascade",
    "ClassifierRun",
    "Run",
    "RunError",
    "Stage",
    "Status",
    "load_samples",
    "read_status",
    "rows_of_labels",
]
