"""What a checkpoint's authors say about generating from it: `generation_config.json`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxserve.errors import CheckpointError, ConfigError, InvalidRequestError
from jaxserve.request import SamplingParams

# The fields that are also sampling parameters, of the same names and ranges.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of a checkpoint; None where it says nothing.

    As in vLLM, `do_sample` is not read: a request that names no temperature gets the
    checkpoint's, and where there is none, 1. eos_token_ids: the tokens that end a sequence.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @staticmethod
    def read(
        generation: Mapping[str, object], config: Mapping[str, object]
    ) -> "GenerationDefaults":
        """Read the parsed `generation_config.json`, or {} where there is none.

        The end tokens come from `config` (config.json) where `generation` names none.
        Raises CheckpointError naming a value that cannot be used.
        """
        eos = generation.get("eos_token_id")
        if eos is None:
            eos = config.get("eos_token_id")
        found = GenerationDefaults(
            temperature=_number(generation, "temperature", low=0.0),
            top_p=_number(generation, "top_p", low=0.0, high=1.0),
            top_k=_integer(generation, "top_k", low=-1),
            min_p=_number(generation, "min_p", low=0.0, high=1.0),
            repetition_penalty=_number(generation, "repetition_penalty", low=0.0),
            max_new_tokens=_integer(generation, "max_new_tokens", low=1),
            eos_token_ids=_token_ids("eos_token_id", eos),
        )
        found._check()
        return found

    @staticmethod
    def of_folder(folder: Path) -> "GenerationDefaults":
        """Read a folder's `generation_config.json`; raises CheckpointError where there is none."""
        path = folder / "generation_config.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} must be a readable JSON file") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} must hold a JSON object")
        return GenerationDefaults.read(found, {})

    def overridden(self, values: Mapping[str, object]) -> "GenerationDefaults":
        """Return these with some replaced; raises ConfigError for what is none of them."""
        known = {*_SAMPLING, "max_new_tokens"}
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"override_generation_config has {name!r}: there is {', '.join(sorted(known))}"
                )
        try:
            read = GenerationDefaults.read(values, {})
        except CheckpointError as error:
            raise ConfigError(f"override_generation_config: {error}") from error
        return replace(self, **{name: getattr(read, name) for name in values})

    def _check(self) -> None:
        """Raise CheckpointError for what every request would be refused for."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        try:
            SamplingParams(**{name: value for name, value in values.items() if value is not None})
        except InvalidRequestError as error:
            raise CheckpointError(f"generation_config.json: {error.message}") from error


def _number(
    values: Mapping[str, object], key: str, *, low: float, high: float = math.inf
) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    # not (...): a NaN is in no range
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refusal(key, value, f"a number in [{low:g}, {high:g}]")
    return float(value)


def _integer(values: Mapping[str, object], key: str, *, low: int) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise _refusal(key, value, f"an integer of at least {low}")
    return value


def _token_ids(key: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise _refusal(key, value, "a token id or a list of them")
    return tuple(ids)


def _refusal(key: str, value: object, limit: str) -> CheckpointError:
    return CheckpointError(f"generation_config.json has {key} = {value!r}; it must be {limit}")
