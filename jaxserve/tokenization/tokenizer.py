"""A model's tokenizer: encoding, decoding, and rendering of chats."""

import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from jaxserve.errors import CheckpointError, ContextLengthError
from jaxserve.loading.diagnosis import broken_tokenizer, read_backend, read_object
from jaxserve.tokenization.sentencepiece_model import fast_folder

# Settings that depend on where the tokenizer was loaded from.
LOCAL_SETTINGS = frozenset({"name_or_path", "is_local", "local_files_only"})


class Tokenizer:
    """The tokenizer of a checkpoint folder. Thread-safe.

    transformers loads it, so all of its tokenizer classes work the same here. The Rust `backend`
    does the work, and is shared with the detokenizer. Nothing is padded or truncated. pretrained:
    the tokenizer object of transformers.
    """

    def __init__(self, pretrained: Any) -> None:
        self.pretrained = pretrained
        self.backend: Backend = pretrained.backend_tokenizer
        # tokenizer.json may enable either, which would silently change prompts.
        self.backend.no_padding()
        self.backend.no_truncation()
        self._added: dict[int, bytes] = {
            token_id: token.content.encode()
            for token_id, token in self.backend.get_added_tokens_decoder().items()
        }
        self.special_ids = frozenset(
            token_id
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token.special
        )
        # Computed here because it takes a tenth of a second, which would delay a request.
        self.max_token_bytes = max(len(token.encode()) for token in self.backend.get_vocab())

    @staticmethod
    def preload() -> None:
        """Import the modules that `load` needs, which takes seconds."""
        _auto_tokenizer()

    @classmethod
    def load(cls, folder: Path, *, chat_template: str | None = None) -> "Tokenizer":
        """Load the tokenizer of a local folder without running code from it.

        chat_template: Jinja template to use in place of the folder's. Raises CheckpointError if
        the folder has no tokenizer, or one that needs its own code.
        """
        if not folder.is_dir():
            raise CheckpointError(f"cannot load a tokenizer: {folder} is not a folder")
        try:
            with fast_folder(folder) as source:
                pretrained = _auto_tokenizer().from_pretrained(
                    source, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # tokenizers raises bare Exception on a malformed file
            raise CheckpointError(
                f"cannot load a tokenizer from {folder}: {broken_tokenizer(folder)}"
            ) from error
        if not pretrained.is_fast:
            raise CheckpointError(f"the tokenizer of {folder} has no fast (Rust) implementation")
        named = pretrained.chat_template
        if chat_template is not None:
            pretrained.chat_template = chat_template
        elif isinstance(named, dict) and len(named) == 1:
            # A single template is the default one, whatever its name.
            (pretrained.chat_template,) = named.values()
        return cls(pretrained)

    def with_chat_template(self, template: str) -> "Tokenizer":
        """Return a copy of this tokenizer with another chat template, in Jinja."""
        twin = copy(self)
        twin.pretrained = copy(self.pretrained)
        twin.pretrained.chat_template = template
        return twin

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids, including added tokens. A model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokenizer's end-of-text ids; a model's generation config may add more."""
        eos = self.pretrained.eos_token_id
        return () if eos is None else (eos,)

    @cached_property
    def pad_id(self) -> int | None:
        """The id of the padding token; None if there is no such token."""
        pad_id: int | None = self.pretrained.pad_token_id
        return pad_id

    @cached_property
    def special_texts(self) -> frozenset[str]:
        """The texts of all special tokens."""
        added = self.backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by role, such as `bos_token`, for chat templates."""
        return dict(self.pretrained.special_tokens_map)

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """The chat template in Jinja; several by name, or None if the model has none."""
        template: str | dict[str, str] | None = self.pretrained.chat_template
        return template

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The tokenizer's settings as JSON values, without local paths."""
        settings = {
            name: _json_value(value)
            for name, value in self.pretrained.init_kwargs.items()
            if name not in LOCAL_SETTINGS and not name.endswith("_file")
        }
        settings["tokenizer_class"] = type(self.pretrained).__name__
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        return settings

    @cached_property
    def render_parameters(self) -> frozenset[str]:
        """Names of the renderer's parameters, which template variables must not use."""
        return frozenset(inspect.signature(self.pretrained.apply_chat_template).parameters)

    def check_num_chars(self, num_chars: int, *, max_model_len: int, param: str) -> None:
        """Raise ContextLengthError if a text of this length cannot fit in `max_model_len` tokens.

        A cheap check before encoding: the text is longer than `max_model_len` longest tokens.
        """
        limit = max_model_len * self.max_token_bytes
        if num_chars > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {max_model_len} tokens, which is at most"
                f" {limit} characters, but {param} has {num_chars}. Please reduce the length of the"
                " input prompt.",
                param=param,
            )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Return the token ids of `text`, which must not contain lone surrogates.

        Releases the GIL, which the backend's plain `encode` would hold.
        """
        batch = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(batch[0].ids)

    def encode_parts(
        self,
        text: str,
        second: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        part_limits: Sequence[int | None] = (),
        side: Literal["left", "right"] = "right",
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the token ids of a text, or of a pair of texts, and the segment of each id.

        part_limits: maximum number of tokens of each text. max_tokens: of all together; only the
        last text is truncated to meet it. side: the side on which texts are truncated.
        """
        texts = [text] if second is None else [text, second]
        parts = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        for part, limit in zip(parts, part_limits, strict=False):
            if limit is not None:
                part.truncate(limit, direction=side)
        if max_tokens is not None:
            num_others = sum(len(part) for part in parts[:-1])
            if add_special_tokens:
                num_others += self.backend.num_special_tokens_to_add(second is not None)
            parts[-1].truncate(max(max_tokens - num_others, 0), direction=side)
        join: Any = self.backend.post_process  # its stub is wrong
        whole = join(parts[0], None if second is None else parts[1], add_special_tokens)
        return tuple(whole.ids), tuple(whole.type_ids)

    def shorten(
        self, text: str, max_tokens: int, *, side: Literal["left", "right"] = "right"
    ) -> str:
        """Return the start of a text, or its end, that has at most `max_tokens` tokens.

        side: the side on which the rest is dropped.
        """
        # Encode no more than could be kept.
        limit = max_tokens * self.max_token_bytes
        text = text[:limit] if side == "right" else text[len(text) - min(limit, len(text)) :]
        (encoded,) = self.backend.encode_batch([text], add_special_tokens=False)
        if len(encoded) <= max_tokens:
            return text
        if not max_tokens:
            return ""
        offsets = encoded.offsets
        if side == "left":
            return text[offsets[-max_tokens][0] :]
        return text[: offsets[max_tokens - 1][1]]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `token_ids`. Unknown ids are ignored."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a character.

        The bytes of a sequence's tokens, joined, are its text. Empty for an unknown id.
        """
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_of is not None and self._byte_of.keys() >= set(token):
            return bytes(self._byte_of[char] for char in token)
        if token.startswith("<0x") and token.endswith(">") and len(token) == len("<0x00>"):
            return bytes.fromhex(token[3:-1])
        return token.replace("▁", " ").encode()

    def token_text(self, token_id: int) -> str:
        """Return a token as text, with U+FFFD in place of incomplete characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_string(self, token_id: int) -> str:
        """Return a token as written in the vocabulary, or an empty string for an unknown id."""
        return self.backend.id_to_token(token_id) or ""

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token sequences of `words`, with and without a space before each.

        As in vLLM, the sequence after a space is included only if it differs and has the same
        length.
        """
        sequences: list[tuple[int, ...]] = []
        for word in words:
            inside = self.encode(word.lstrip(), add_special_tokens=False)
            start = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if inside:
                sequences.append(inside)
            if start and len(start) == len(inside) and start[0] != inside[0]:
                sequences.append(start)
        return tuple(sequences)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a chat as text, rendered by transformers in its Jinja sandbox.

        variables: further template variables; the caller must make sure that they are harmless.
        Raises the template's errors, which chat/template.py translates.
        """
        prompt: str = self.pretrained.apply_chat_template(
            [dict(message) for message in messages],
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **(variables or {}),
        )
        return prompt

    @cached_property
    def _byte_of(self) -> Mapping[str, int] | None:
        """The byte of each character in a byte-level vocabulary; None for other vocabularies."""
        decoder = self.backend.decoder
        # The type of a decoder is known only from its state, a part of tokenizer.json.
        state = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {state.get("type")} | {part["type"] for part in state.get("decoders", ())}
        if "ByteLevel" not in kinds:
            return None
        from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: PLC0415

        chars: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        return {char: byte for byte, char in chars.items()}


def _json_value(value: object) -> object:
    """Return a setting as JSON: the text of an added token, and unknown types as strings."""
    match value:
        case AddedToken():
            return value.content
        case Mapping():
            return {str(name): _json_value(each) for name, each in value.items()}
        case list() | tuple():
            return [_json_value(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)


def _auto_tokenizer() -> Any:
    """Return transformers' AutoTokenizer. The first call takes seconds."""
    # At the end of its import, transformers replaces itself in sys.modules. A thread that waited
    # for another thread's import gets the replaced module, which has no AutoTokenizer.
    importlib.import_module("transformers")
    return sys.modules["transformers"].AutoTokenizer


def truncated(token_ids: tuple[int, ...], limit: int, *, side: str) -> tuple[int, ...]:
    """Return at most `limit` ids, dropping the excess on this side. limit: at least 1."""
    return token_ids[-limit:] if side == "left" else token_ids[:limit]


def load_backend(folder: Path) -> Backend:
    """Load only the Rust backend of a tokenizer, much faster than `Tokenizer.load`.

    If tokenizer.json does not have all tokens, fall back to `Tokenizer.load`, with its errors.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    backend = read_backend(path)
    if backend is not None:
        known = backend.get_added_tokens_decoder()
        added = (read_object(settings) or {}).get("added_tokens_decoder") or {}
        if all(int(token_id) in known for token_id in added):
            return backend
    return Tokenizer.load(folder).backend
