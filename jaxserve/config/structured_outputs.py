"""Operator settings of structured outputs; light to import, as the command line reads them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from jaxserve.errors import ConfigError

BACKENDS = ("auto", "guidance")
# Those of vLLM: its command lines name them.
OTHER_BACKENDS = ("xgrammar", "outlines", "lm-format-enforcer")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsConfig:
    """What holds for requests that say nothing else; names as in vLLM.

    backend: "guidance", which "auto" chooses; it stands in for vLLM's other backends.
    whitespace_pattern is our own; the others are those of StructuredOutputsParams. Raises
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
        """The line that reports a backend that llguidance stands in for."""
        if self.backend in BACKENDS:
            return None
        return (
            f"structured_outputs_config.backend={self.backend} has no effect: grammars are compiled"
            " by llguidance"
        )

    @staticmethod
    def of(fields: Mapping[str, Any]) -> "StructuredOutputsConfig":
        """Return the configuration of a JSON object; raises ConfigError for unknown fields."""
        known = [field.name for field in dataclass_fields(StructuredOutputsConfig)]
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"structured_outputs_config has no field {name!r:.60}: there is"
                    f" {', '.join(known)}"
                )
        return StructuredOutputsConfig(**fields)
