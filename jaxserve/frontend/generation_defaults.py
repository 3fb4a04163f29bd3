"""Sampling defaults of a checkpoint, from `generation_config.json`.

A published file must not keep the server from starting, so an invalid value in it is ignored with
a warning. An invalid value set by the operator is an error.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxserve.api.limits import show
from jaxserve.api.sampling_params import LIMITS, SamplingParams
from jaxserve.errors import CheckpointError, ConfigError, InvalidRequestError
from jaxserve.loading.diagnosis import read_object

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"
_EOS = "eos_token_id"
# Names in the file, and the sampling parameters that they set.
_DEFAULTS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_OVERRIDE = "--override-generation-config"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of a checkpoint; None where it has none.

    As in vLLM, `do_sample` is not read: a request without a temperature gets that of the
    checkpoint, or else 1. eos_token_ids: the tokens that end a sequence.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def sampling_params(self) -> SamplingParams:
        """Return the parameters of a request that sets none."""
        values = {
            parameter: getattr(self, name)
            for name, parameter in _DEFAULTS.items()
            if getattr(self, name) is not None
        }
        return SamplingParams(**values)

    @staticmethod
    def read(
        folder: Path,
        config: Mapping[str, object],
        *,
        source: str = "auto",
        overrides: Mapping[str, object] | None = None,
    ) -> "GenerationDefaults":
        """Return the defaults of a model's folder whose parsed config.json is `config`.

        source: "auto" reads the folder's file, "vllm" reads only the end tokens from it, and any
        other value is a folder whose file is read instead. overrides: values that replace those of
        the file; null means no default. The end tokens come from the first of these that has any:
        the file, the model's own file, and `config`.

        Invalid values of the file are ignored, or repaired where that is safe, with a warning.
        Raises ConfigError for an invalid override, and CheckpointError if `source` has no readable
        file.
        """
        over = _checked(overrides or {})
        own = folder / _FILE
        if source == "auto":
            found, where = _published(own), own
        elif source == "vllm":
            # No warnings, because the file's defaults are not used.
            found, where = {_EOS: (read_object(own) or {}).get(_EOS)}, own
        else:
            where = Path(source) / _FILE
            found = _required(where)
        values = {name: found[name] for name in _DEFAULTS if name in found and name not in over}
        eos_token_ids = _end_tokens(found, where)
        if not eos_token_ids and where != own:
            eos_token_ids = _end_tokens(_published(own), own)
        if not eos_token_ids:
            eos_token_ids = _end_tokens(config, folder / "config.json")
        # Any, because the values have been checked against the types of their parameters.
        usable: dict[str, Any] = {**_usable(values, where), **over}
        return GenerationDefaults(eos_token_ids=eos_token_ids, **usable)


def _published(path: Path) -> Mapping[str, object]:
    """Return the object in a file; if it cannot be read, warn and return an empty one."""
    if not path.exists():
        return {}
    try:
        return _required(path)
    except CheckpointError as error:
        logger.warning("%s: its defaults are not used", error)
        return {}


def _required(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} must be a readable JSON file ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must contain a JSON object")
    return found


def _checked(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the operator's values, checked. Raises ConfigError for an invalid one."""
    checked: dict[str, object] = {}
    for name, value in overrides.items():
        if name not in _DEFAULTS:
            raise ConfigError(
                f"override_generation_config keys must be among {', '.join(sorted(_DEFAULTS))},"
                f" got {name!r}"
            )
        try:
            checked[name] = None if value is None else _within_limits(name, value)
        except InvalidRequestError as error:
            raise ConfigError(f"override_generation_config: {error.message}") from error
    return checked


def _usable(values: Mapping[str, object], where: Path) -> dict[str, object]:
    """Return the valid values, each in the type of its parameter."""
    usable: dict[str, object] = {}
    for name, value in values.items():
        if value is None:
            continue
        repair = f"set it with {_OVERRIDE} '{{\"{name}\": ...}}'"
        try:
            usable[name] = _within_limits(name, value)
        except InvalidRequestError as error:
            reason = error.message.replace(_DEFAULTS[name], name, 1)
            logger.warning("%s: %s. It is ignored; %s", where, reason, repair)
            continue
        if usable[name] != value or (isinstance(value, float) and type(usable[name]) is int):
            message = "%s has %s = %s, which is read as %s; %s"
            logger.warning(message, where, name, show(value), usable[name], repair)
    return usable


def _within_limits(name: str, value: object) -> float | int:
    """Return a number in the type of its parameter. Raises InvalidRequestError with the limits.

    Numbers may also be given as strings, and integers as floats.
    """
    parameter = _DEFAULTS[name]
    limits = LIMITS[parameter]
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = value
    if isinstance(limits.low, int) and isinstance(number, float) and number.is_integer():
        number = int(number)
    limits.check(parameter, number)
    assert isinstance(number, int | float)  # Limits.check accepts nothing else
    return number if isinstance(limits.low, int) else float(number)


def _end_tokens(values: Mapping[str, object], where: Path) -> tuple[int, ...]:
    """Return the ids of the end tokens. Ignore invalid ids with a warning."""
    value = values.get(_EOS)
    listed = value if isinstance(value, list) else [value]
    ids = [each for each in listed if type(each) is int and each >= 0]
    if value is not None and len(ids) < len(listed):
        message = "%s: %s must be a token id or a list of token ids, got %s; the rest is ignored"
        logger.warning(message, where, _EOS, show(value))
    return tuple(ids)
