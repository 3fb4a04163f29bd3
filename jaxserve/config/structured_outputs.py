"""Server-wide settings of structured outputs. Imports nothing large: the command line uses it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from jaxserve.errors import ConfigError

BACKENDS = ("auto", "guidance")
# Backends of vLLM, accepted for its command lines.
OTHER_BACKENDS = ("xgrammar", "outlines", "lm-format-enforcer")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsConfig:
    """Defaults of structured outputs for requests, with vLLM's names.

    backend: "auto" selects "guidance", which also replaces vLLM's other backends.
    whitespace_pattern is not in vLLM; the others are fields of StructuredOutputsParams. Raises
    ConfigError.
    """

    backend: str = "auto"
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS + OTHER_BACKENDS:
            raise ConfigError(
                "structured_outputs_config.backend must be one of"
                f" {', '.join(BACKENDS + OTHER_BACKENDS)}, got {self.backend!r}"
            )
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"structured_outputs_config.{name} must be true or false")
        pattern = self.whitespace_pattern
        if pattern is not None and not (isinstance(pattern, str) and pattern):
            raise ConfigError("structured_outputs_config.whitespace_pattern must be a regex")
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ConfigError(
                f"structured_outputs_config.whitespace_pattern must be a regex: {error}"
            ) from error
        if pattern is not None and self.disable_any_whitespace:
            raise ConfigError(
                "structured_outputs_config.whitespace_pattern cannot be given with"
                " disable_any_whitespace"
            )

    @property
    def note(self) -> str | None:
        """The log line that reports a backend replaced by llguidance, or None."""
        if self.backend in BACKENDS:
            return None
        return (
            f"structured_outputs_config.backend={self.backend} has no effect: grammars are compiled"
            " by llguidance"
        )

    @staticmethod
    def of(fields: Mapping[str, Any]) -> "StructuredOutputsConfig":
        """Convert a JSON object. Raises ConfigError for unknown fields."""
        known = [field.name for field in dataclass_fields(StructuredOutputsConfig)]
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"structured_outputs_config has no field {name!r:.60}: there is"
                    f" {', '.join(known)}"
                )
        return StructuredOutputsConfig(**fields)
