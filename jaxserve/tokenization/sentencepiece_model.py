"""Tokenizers published as a SentencePiece model alone, which the Rust backend does not read.

transformers 5 converts one where its class is known, and loses the space before a text; so the
model is converted here, by what it says of itself (Kudo and Richardson, 2018, arXiv:1808.06226).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

MODEL = "tokenizer.model"
_SETTINGS = "tokenizer_config.json"
_COPIED = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# Settings of the classes that read the model themselves.
_OF_SLOW_CLASSES = ("auto_map", "sp_model_kwargs", "legacy", "add_prefix_space", "from_slow")
_SPACE = "▁"
# Kinds of pieces in the protocol buffer.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@contextmanager
def fast_folder(folder: Path) -> Iterator[Path]:
    """Give a folder from which transformers loads the same tokenizer with its Rust backend.

    That is `folder` itself, unless it has only a SentencePiece model. Raises ValueError where that
    is no such model, or of a kind other than BPE and unigram.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / MODEL).is_file():
        yield folder
        return
    path = folder / _SETTINGS
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="jaxserve-tokenizer-") as made:
        proto = _read(folder / MODEL)
        _convert(proto, settings).save(f"{made}/tokenizer.json")
        roles = {
            f"{role}_token": proto.pieces[index].piece
            for role in ("bos", "eos", "unk", "pad")
            if (index := getattr(proto.trainer_spec, f"{role}_id")) >= 0
        }
        kept = {key: value for key, value in settings.items() if key not in _OF_SLOW_CLASSES}
        written = {**roles, **kept, "tokenizer_class": "PreTrainedTokenizerFast"}
        Path(made, _SETTINGS).write_text(json.dumps(written), "utf-8")
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copy(folder / name, made)
        yield Path(made)


def is_model(path: Path) -> bool:
    """Return whether a file is a SentencePiece model."""
    try:
        _read(path)
    except ValueError:
        return False
    return True


def _read(path: Path) -> Any:
    """Return the parsed protocol buffer; raises ValueError."""
    # Imported here, as few models need it, and by name, as neither has types.
    decode_error = import_module("google.protobuf.message").DecodeError
    proto = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except decode_error as error:
        raise ValueError(f"{path.name} is not a SentencePiece model") from error
    if not proto.pieces:
        raise ValueError(f"{path.name} is not a SentencePiece model")
    return proto


def _convert(proto: Any, settings: Mapping[str, Any]) -> Backend:
    """Return the tokenizer that a SentencePiece model describes."""
    backend = Backend(_model(proto))
    spec = proto.normalizer_spec
    has_prefix = spec.add_dummy_prefix and settings.get("add_prefix_space") is not False
    is_legacy = settings.get("legacy") is not False
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if is_legacy:
        # As in transformers, the text after a special token begins with a space, too.
        steps += [normalizers.Prepend(_SPACE)] if has_prefix else []
        steps.append(normalizers.Replace(" ", _SPACE))
    else:
        scheme = "first" if has_prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, split=False)
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in proto.pieces
            if piece.type in {_UNKNOWN, _CONTROL, _USER_DEFINED}
        ]
    )
    backend.post_processor = _around_texts(proto, settings)
    return backend


def _model(proto: Any) -> models.Model:
    spec = proto.trainer_spec
    match spec.model_type:
        case 1:  # unigram
            scored = [(piece.piece, piece.score) for piece in proto.pieces]
            return models.Unigram(scored, spec.unk_id, spec.byte_fallback)
        case 2:  # BPE
            return models.BPE(
                {piece.piece: index for index, piece in enumerate(proto.pieces)},
                _merges(proto),
                unk_token=spec.unk_piece,
                fuse_unk=True,
                byte_fallback=spec.byte_fallback,
            )
        case _:
            raise ValueError(f"{MODEL} is of a kind other than BPE and unigram")


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Return the pairs that make each piece, the best pieces first.

    A SentencePiece model scores its pieces and names no merges: any two that make one may merge.
    """
    strange = {_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    index_of = {p.piece: i for i, p in enumerate(proto.pieces) if p.type not in strange}
    ranked = sorted(index_of, key=lambda piece: -proto.pieces[index_of[piece]].score)
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in index_of and piece[cut:] in index_of
    ]


def _around_texts(proto: Any, settings: Mapping[str, Any]) -> processors.TemplateProcessing | None:
    """Return what puts the beginning and end of a text around it; Llama's class has the former."""
    spec = proto.trainer_spec
    begin = spec.bos_id if settings.get("add_bos_token", True) else -1
    end = spec.eos_id if settings.get("add_eos_token", False) else -1
    ids = [index for index in (begin, end) if index >= 0]
    if not ids:
        return None
    first = [proto.pieces[begin].piece] if begin >= 0 else []
    last = [proto.pieces[end].piece] if end >= 0 else []
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B:1", *last],
        special_tokens=[(proto.pieces[index].piece, index) for index in ids],
    )
