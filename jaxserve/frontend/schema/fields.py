"""Known request fields that are not served: refused by name with a reason, or of no effect."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticCustomError

# Steps from a body to a part of it.
type Place = tuple[str | int, ...]

NOT_YET = "is not supported yet"
TEXT_ONLY = "is not supported: this server reads and writes text only"
STRUCTURED = "is not the name of it: use structured_outputs"


@dataclass(frozen=True, slots=True)
class Unread:
    """Fields that an object may have although nothing reads them.

    ignored: hints of no effect, accepted and reported. repeated: such hints that the model has as
    fields all the same, because answers repeat them or their kind is checked. refused: by a reason.
    The last two list values that ask for what is done anyway, and so does null.
    """

    ignored: frozenset[str] = frozenset()
    repeated: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)

    def served(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of an object is left to read, without nulls.

        Raises PydanticCustomError of type `unsupported` for a field that cannot be served.
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
        """Whether a field that the model has is given in vain."""
        return name in self.repeated and not _is_one_of(value, self.repeated[name])

    def schemas(self) -> dict[str, Any]:
        """Return what the API's document says of them."""
        return {name: {"description": "Of no effect here."} for name in sorted(self.ignored)} | {
            name: {"enum": [*harmless, None], "description": f"Anything else {reason}."}
            for name, (reason, harmless) in self.refused.items()
        }


def _is_one_of(value: object, harmless: Iterable[object]) -> bool:
    # By type too: True == 1
    return any(type(value) is type(same) and value == same for same in harmless)


# Accepted and of no effect here: hints, bookkeeping and promises that hold anyway.
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
    "best_of": ("is not supported: ask for n answers and choose among them", (1,)),
    "ec_transfer_params": (NOT_YET, ()),
    "function_call": ("is OpenAI's older form and not supported: use tool_choice", ("none",)),
    "functions": ("is OpenAI's older form and not supported: use tools", ([],)),
    "kv_transfer_params": (NOT_YET, ()),
    "media_io_kwargs": (TEXT_ONLY, ({},)),
    "mm_processor_kwargs": (TEXT_ONLY, ({},)),
    "modalities": (TEXT_ONLY, (["text"],)),
    "prompt_embeds": ("is not supported: prompts are text or token ids", ()),
    "return_weight_versions": (NOT_YET, (False,)),
    "suffix": ("is not supported: the model cannot be asked to fill a gap", ("",)),
    "watermarking": (NOT_YET, (False,)),
}

UNREAD = Unread(ignored=IGNORED, refused=REFUSED)
WITH_MESSAGES = "cannot be given with messages"
