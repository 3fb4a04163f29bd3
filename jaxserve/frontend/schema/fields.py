"""Known request fields that are not implemented: refused with a reason, or ignored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticCustomError

# Steps from a body to a part of it.
type Place = tuple[str | int, ...]

NOT_YET = "is not supported yet"
TEXT_ONLY = "is not supported: this server reads and writes text only"
STRUCTURED = "is not supported: use structured_outputs"


@dataclass(frozen=True, slots=True)
class Unread:
    """Known fields of an object that have no effect.

    ignored: hints, accepted and reported to the client. repeated: hints that the pydantic model
    declares anyway, to validate them or to repeat them in answers. refused: reasons, by field.
    `repeated` and `refused` also list the values that match the default behaviour, as null does.
    """

    ignored: frozenset[str] = frozenset()
    repeated: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)

    def served(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of an object to validate, without nulls.

        Raises PydanticCustomError of type `unsupported` for a refused field.
        """
        left = {}
        for name, value in body.items():
            if value is None or name in self.ignored:
                continue
            if name in self.refused:
                reason, harmless = self.refused[name]
                if not _is_one_of(value, harmless):
                    context = {"name": name, "reason": reason}
                    raise PydanticCustomError("unsupported", "unsupported", context)
                continue
            left[name] = value
        return left

    def is_idle(self, name: str, value: object) -> bool:
        """Whether a declared field has a value that has no effect."""
        return name in self.repeated and not _is_one_of(value, self.repeated[name])

    def schemas(self) -> dict[str, Any]:
        """Return their JSON schemas for the OpenAPI document."""
        return {name: {"description": "Has no effect."} for name in sorted(self.ignored)} | {
            name: {"enum": [*harmless, None], "description": f"Any other value {reason}."}
            for name, (reason, harmless) in self.refused.items()
        }


def _is_one_of(value: object, harmless: Iterable[object]) -> bool:
    # Compare types too, because True == 1.
    return any(type(value) is type(same) and value == same for same in harmless)


# Accepted without effect: hints, bookkeeping, and guarantees that always hold.
IGNORED = frozenset(
    {
        "cache_prompt",
        "guided_decoding_backend",
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
        "verbosity",
        "web_search_options",
    }
)

REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    **dict.fromkeys(
        (
            "choice",
            "grammar",
            "json",
            "json_object",
            "json_schema",
            "regex",
            "structural_tag",
            "whitespace_pattern",
        ),
        (STRUCTURED, ()),
    ),
    "audio": (TEXT_ONLY, ()),
    "best_of": ("is not supported: request n answers and choose among them", (1,)),
    "ec_transfer_params": (NOT_YET, ()),
    "function_call": ("is deprecated and not supported: use tool_choice", ("none",)),
    "functions": ("is deprecated and not supported: use tools", ([],)),
    "kv_transfer_params": (NOT_YET, ()),
    "media_io_kwargs": (TEXT_ONLY, ({},)),
    "mm_processor_kwargs": (TEXT_ONLY, ({},)),
    "modalities": (TEXT_ONLY, (["text"],)),
    "prompt_embeds": ("is not supported: prompts are text or token ids", ()),
    "return_weight_versions": (NOT_YET, (False,)),
    "suffix": ("is not supported: this server does not fill in the middle", ("",)),
    "watermarking": (NOT_YET, (False,)),
}

UNREAD = Unread(ignored=IGNORED, refused=REFUSED)
WITH_MESSAGES = "cannot be given with messages"
