"""What a checkpoint's authors say about generating from it: `generation_config.json`.

A server must start with the file as it was published: a value that no request could use is left
out with a warning. An operator's own values are held to their limits.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxserve.api.limits import show
from jaxserve.api.request import LIMITS, SamplingParams
from jaxserve.errors import CheckpointError, ConfigError, InvalidRequestError
from jaxserve.loading.diagnosis import read_object

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"
_EOS = "eos_token_id"
# By the name in the file, the request's parameter whose limits it has.
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

    def sampling_params(self) -> SamplingParams:
        """Return the parameters of a request that asks for nothing itself."""
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

        source: "auto" reads the folder's file, "vllm" takes from it the end tokens only, and
        anything else is a folder whose file counts instead. overrides: values in place of the
        file's, which are then not looked at; null stands for no default. The end tokens are those
        of the first of the file, the model's own file, and `config` to name any.

        Values that cannot be used are left out, or repaired where that is safe, with a warning
        each. Raises ConfigError for such an override, CheckpointError for a `source` without a
        readable file.
        """
        over = _checked(overrides or {})
        own = folder / _FILE
        if source == "auto":
            found, where = _published(own), own
        elif source == "vllm":
            # Nobody asked for the file's defaults, so that nobody is told of its faults.
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
        # Any: each value has been held to the limits of its parameter, types included.
        usable: dict[str, Any] = {**_usable(values, where), **over}
        return GenerationDefaults(eos_token_ids=eos_token_ids, **usable)


def _published(path: Path) -> Mapping[str, object]:
    """Return the object in a file; an empty one, with a warning, where it cannot be read."""
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
        raise CheckpointError(f"{path} must hold a JSON object")
    return found


def _checked(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return an operator's values; raises ConfigError for one that is not of its parameter."""
    checked: dict[str, object] = {}
    for name, value in overrides.items():
        if name not in _DEFAULTS:
            raise ConfigError(
                f"override_generation_config has {name!r}: there is {', '.join(sorted(_DEFAULTS))}"
            )
        try:
            checked[name] = None if value is None else _within_limits(name, value)
        except InvalidRequestError as error:
            raise ConfigError(f"override_generation_config: {error.message}") from error
    return checked


def _usable(values: Mapping[str, object], where: Path) -> dict[str, object]:
    """Return the values that requests can use, each in the type of its parameter."""
    usable: dict[str, object] = {}
    for name, value in values.items():
        if value is None:
            continue
        repair = f"{_OVERRIDE} '{{\"{name}\": ...}}' sets it"
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
    """Return a number in the type of its parameter; raises InvalidRequestError naming its limits.

    A number may be written as a text, and a whole number as a float.
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
    assert isinstance(number, int | float)  # what the limits are of
    return number if isinstance(limits.low, int) else float(number)


def _end_tokens(values: Mapping[str, object], where: Path) -> tuple[int, ...]:
    """Return the ids of the tokens that end a text; what is no id is left out with a warning."""
    value = values.get(_EOS)
    listed = value if isinstance(value, list) else [value]
    ids = [each for each in listed if type(each) is int and each >= 0]
    if value is not None and len(ids) < len(listed):
        message = "%s has %s = %s; it must be a token id or a list of them: the rest is ignored"
        logger.warning(message, where, _EOS, show(value))
    return tuple(ids)
