"""A person's mistake with published weights, told in one line."""

from __future__ import annotations

from jaxdiff.launch.errors import ConfigError


class PretrainedError(ConfigError):
    """Published weights that cannot be read, or are not what was expected. The message is one line, for the user."""
