"""Tiny Hugging Face checkpoints from rules: a configuration, and weights drawn by tensor name.

Read by the tests and, under torch, by make_goldens.py, so that both see the same numbers and the
goldens need hold only logits. Neither torch nor jaxserve is imported here.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

HfConfig = dict[str, Any]

NUM_TOKENS = 48  # longer than the window and than the original context of every case
WINDOW = 8
_ORIGINAL_CONTEXT = 32

# Where a prompt's logits are kept: its ends, around the window, around the original context.
POSITIONS = (0, 7, 8, 20, 31, 33, 47)

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ROPES: dict[str, HfConfig] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL_CONTEXT,
    },
}


def tiny_config(model_type: str, **changes: object) -> HfConfig:
    """Return a small `config.json`; its head_dim is not hidden_size / heads, as in Qwen3."""
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    } | changes


def _with_rope(model_type: str, kind: str) -> HfConfig:
    # Dynamic scaling starts at max_position_embeddings; the others name their original context.
    length = _ORIGINAL_CONTEXT if kind == "dynamic" else 128
    rope = {"rope_theta": 10000.0, **_ROPES[kind]}
    return tiny_config(model_type, max_position_embeddings=length, rope_parameters=rope)


def _cases() -> dict[str, HfConfig]:
    cases = {
        f"{family}-{kind}": _with_rope(family, kind) for family in _ARCHITECTURES for kind in _ROPES
    }
    for family in ("llama", "qwen2", "qwen3"):
        cases[f"{family}-tied"] = tiny_config(family, tie_word_embeddings=True)
    yarn = {"rope_theta": 10000.0, **_ROPES["yarn"]}
    cases |= {
        "llama-biases": tiny_config("llama", attention_bias=True, mlp_bias=True),
        "llama-old-spelling": tiny_config(
            "llama", rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}
        ),
        "llama-huge-theta": tiny_config("llama", rope_theta=1e32, rope_scaling=None),
        "llama-one-kv-head": tiny_config("llama", num_key_value_heads=1),
        "llama-all-kv-heads": {
            key: value
            for key, value in tiny_config("llama", head_dim=None).items()
            if key != "num_key_value_heads"
        },
        "llama-yarn-ramp": tiny_config(
            "llama",
            rope_parameters={**yarn, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False},
        ),
        "llama-yarn-attention-factor": tiny_config(
            "llama", rope_parameters={**yarn, "attention_factor": 1.3}
        ),
        "llama-yarn-mscale": tiny_config(
            "llama", rope_parameters={**yarn, "mscale": 1.0, "mscale_all_dim": 0.6}
        ),
        "mistral-sliding": tiny_config("mistral", sliding_window=WINDOW),
        "mistral-full": tiny_config("mistral", sliding_window=None),
        "mistral-sliding-yarn": tiny_config("mistral", sliding_window=WINDOW, rope_parameters=yarn),
        "qwen2-upper-layers-slide": tiny_config(
            "qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
        "qwen2-window-unused": tiny_config(
            "qwen2", use_sliding_window=False, sliding_window=WINDOW, max_window_layers=0
        ),
        "qwen3-layer-types": tiny_config(
            "qwen3",
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "qwen3-biases": tiny_config("qwen3", attention_bias=True),
    }
    return cases


CASES = _cases()


def encoder_config(model_type: str, **changes: object) -> HfConfig:
    """Return a small `config.json` of an encoder."""
    return {
        "architectures": [_ENCODERS[model_type]],
        "model_type": model_type,
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "max_position_embeddings": 66,
        "type_vocab_size": 2 if model_type == "bert" else 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 0 if model_type == "bert" else 1,
        "torch_dtype": "float32",
    } | changes


_ENCODERS = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
_THREE_LABELS: HfConfig = {
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}

# Their goldens are hidden states, or scores where there are labels.
ENCODER_CASES = {family: encoder_config(family) for family in _ENCODERS} | {
    f"{family}-labels": encoder_config(
        family,
        architectures=[_ENCODERS[family].replace("Model", "ForSequenceClassification")],
        **_THREE_LABELS,
    )
    for family in _ENCODERS
}
LABEL_CASES = {
    f"{family}-labels": tiny_config(
        family,
        architectures=[_ARCHITECTURES[family].replace("CausalLM", "SequenceClassification")],
        pad_token_id=0,
        **_THREE_LABELS,
    )
    for family in ("llama", "qwen2", "qwen3")
}
MODERNBERT_CASES = {
    f"modernbert-{pooling}-labels": {
        "architectures": ["ModernBertForSequenceClassification"],
        "model_type": "modernbert",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "local_attention": 2 * WINDOW,
        "classifier_pooling": pooling,
        "norm_bias": has_norm_bias,
        "pad_token_id": 0,
        **_THREE_LABELS,
    }
    for pooling, has_norm_bias in (("cls", False), ("mean", True))
}
POOLED_CASES = ENCODER_CASES | LABEL_CASES | MODERNBERT_CASES

# Models with one label, the relevance of a document to a query; their goldens are scores.
CROSS_ENCODERS = {
    family: encoder_config(
        family,
        architectures=[_ENCODERS[family].replace("Model", "ForSequenceClassification")],
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    )
    for family in ("bert", "xlm-roberta")
}
QUERY = "who is a lazy dog ?"
DOCUMENTS = (
    "the quick brown fox is not a dog",
    "a lazy dog",
    "once upon a time there was a dog who was lazy",
    "words that nobody knows",
    QUERY,
)


def prompt(config: HfConfig, *, num_tokens: int = NUM_TOKENS) -> NDArray[np.int32]:
    """Return the token ids that every case is asked about."""
    draw = np.random.RandomState(0)  # its stream is frozen: no release changes it
    return draw.randint(0, config["vocab_size"], num_tokens).astype(np.int32)


def segments(config: HfConfig) -> NDArray[np.int32]:
    """Return of which of two texts each token of the prompt is."""
    is_second = np.arange(NUM_TOKENS) >= NUM_TOKENS // 2
    return (is_second & (config.get("type_vocab_size") == 2)).astype(np.int32)


def tensor_shapes(config: HfConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a checkpoint, as transformers saves them."""
    if config["model_type"] == "modernbert":
        return _modernbert_shapes(config)
    is_encoder = config["model_type"] in _ENCODERS
    return _encoder_shapes(config) if is_encoder else _decoder_shapes(config)


def write_pair_tokenizer(folder: Path, config: HfConfig) -> Path:
    """Write a tokenizer of words that joins two texts as the family's own does."""
    is_bert = config["model_type"] == "bert"
    pad, unknown, begin, end = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    special = [pad, unknown, begin, end]
    if not is_bert:
        special = begin, pad, end, unknown = ["<s>", "<pad>", "</s>", "<unk>"]
    words = sorted({*" ".join([QUERY, *DOCUMENTS[:3]]).split()})
    backend = Backend(
        models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unknown)
    )
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1" if is_bert else f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, special.index(begin)), (end, special.index(end))],
    )
    backend.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if is_bert else [])]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "pad_token": pad,
        "unk_token": unknown,
        "cls_token": begin,
        "sep_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def _encoder_shapes(config: HfConfig) -> dict[str, tuple[int, ...]]:
    embed, ffw = config["hidden_size"], config["intermediate_size"]
    has_labels = config["architectures"][0].endswith("ForSequenceClassification")
    is_bert = config["model_type"] == "bert"
    base = ("bert." if is_bert else "roberta.") if has_labels else ""
    shapes: dict[str, tuple[int, ...]] = {
        f"{base}embeddings.word_embeddings.weight": (config["vocab_size"], embed),
        f"{base}embeddings.position_embeddings.weight": (config["max_position_embeddings"], embed),
        f"{base}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], embed),
    }
    linears: dict[str, tuple[int, ...]] = {}
    norms = [f"{base}embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"{base}encoder.layer.{layer}"
        linears |= {
            f"{prefix}.attention.self.query": (embed, embed),
            f"{prefix}.attention.self.key": (embed, embed),
            f"{prefix}.attention.self.value": (embed, embed),
            f"{prefix}.attention.output.dense": (embed, embed),
            f"{prefix}.intermediate.dense": (ffw, embed),
            f"{prefix}.output.dense": (embed, ffw),
        }
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    if not has_labels or is_bert:
        linears[f"{base}pooler.dense"] = (embed, embed)
    if has_labels:
        score = "classifier" if is_bert else "classifier.out_proj"
        linears[score] = (len(config["id2label"]), embed)
        if not is_bert:
            linears["classifier.dense"] = (embed, embed)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (embed,), f"{name}.bias": (embed,)}
    return shapes


def _modernbert_shapes(config: HfConfig) -> dict[str, tuple[int, ...]]:
    embed, ffw, num_labels = config["hidden_size"], config["intermediate_size"], 3
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.tok_embeddings.weight": (config["vocab_size"], embed),
        "head.dense.weight": (embed, embed),
        "classifier.weight": (num_labels, embed),
        "classifier.bias": (num_labels,),
    }
    norms = ["model.embeddings.norm", "model.final_norm", "head.norm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.attn.Wqkv.weight": (3 * embed, embed),
            f"{prefix}.attn.Wo.weight": (embed, embed),
            f"{prefix}.mlp.Wi.weight": (2 * ffw, embed),
            f"{prefix}.mlp.Wo.weight": (embed, ffw),
        }
        norms += [f"{prefix}.mlp_norm", *([f"{prefix}.attn_norm"] if layer else [])]
    for name in norms:
        shapes[f"{name}.weight"] = (embed,)
        if config["norm_bias"]:
            shapes[f"{name}.bias"] = (embed,)
    return shapes


def _decoder_shapes(config: HfConfig) -> dict[str, tuple[int, ...]]:
    embed, ffw, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = config["num_attention_heads"]
    head_dim = config["head_dim"] or embed // heads
    q_out, kv_out = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    family = config["model_type"]
    attention_bias = family != "mistral" and config.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, embed),
        "model.norm.weight": (embed,),
    }
    if "id2label" in config:
        shapes["score.weight"] = (len(config["id2label"]), embed)
    elif not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, embed)
    for layer in range(config["num_hidden_layers"]):
        linears = {
            "self_attn.q_proj": (q_out, embed, attention_bias or family == "qwen2"),
            "self_attn.k_proj": (kv_out, embed, attention_bias or family == "qwen2"),
            "self_attn.v_proj": (kv_out, embed, attention_bias or family == "qwen2"),
            "self_attn.o_proj": (embed, q_out, attention_bias),
            "mlp.gate_proj": (ffw, embed, config.get("mlp_bias", False)),
            "mlp.up_proj": (ffw, embed, config.get("mlp_bias", False)),
            "mlp.down_proj": (embed, ffw, config.get("mlp_bias", False)),
        }
        prefix = f"model.layers.{layer}"
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (embed,)
        if family == "qwen3":
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                shapes[f"{prefix}.{name}.weight"] = (head_dim,)
    return shapes


def tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the values of a tensor, which depend on its name and shape alone.

    Large enough that attention is far from uniform and logits are of order one to ten.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    values = draw.standard_normal(shape)
    if "norm" in name.lower() and not name.endswith("bias"):
        return (1.0 + 0.2 * values).astype(np.float32)
    if name.endswith("A_log"):  # the speed of decay: slow enough to remember many tokens
        return (values - 2).astype(np.float32)
    scale = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
    return (scale * values).astype(np.float32)


def tensors(config: HfConfig) -> dict[str, NDArray[np.float32]]:
    """Return all tensors of a checkpoint."""
    return {name: tensor(name, shape) for name, shape in tensor_shapes(config).items()}


def write_checkpoint(folder: Path, config: HfConfig) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
