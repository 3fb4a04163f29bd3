"""Write a trained model as a standard Hugging Face folder, and read such a folder back."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from examples.tiny_model.tokenizer import END_OF_TEXT, TURN_END
from jaxserve.models import DecoderConfig, Params, hf_state

# Sampling when a request does not say; low enough that the facts stay right.
_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}


def write_folder(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    hf_config: Mapping[str, object],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write configuration, bfloat16 weights and tokenizer; other files in `folder` are left."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    _correct_tokenizer_config(folder / "tokenizer_config.json", config)
    vocab = tokenizer.get_vocab()
    end_ids = [vocab[TURN_END], vocab[END_OF_TEXT]]
    tokens = {"eos_token_id": end_ids[0], "pad_token_id": end_ids[1], "bos_token_id": None}
    _write_json(folder / "config.json", {**hf_config, **tokens, "dtype": "bfloat16"})
    generation = {**_SAMPLING, "eos_token_id": end_ids, "pad_token_id": end_ids[1]}
    _write_json(folder / "generation_config.json", generation)
    save_file(hf_weights(params, config), folder / "model.safetensors", metadata={"format": "pt"})


def hf_weights(params: Params, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Return the parameters as a checkpoint holds them: by its names, in bfloat16."""
    weights = hf_state(config, params)
    return {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}


def _correct_tokenizer_config(path: Path, config: DecoderConfig) -> None:
    """State the context length, and a class that transformers 4 knows as well as 5."""
    settings = json.loads(path.read_text())
    settings["model_max_length"] = config.max_position
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(path, settings)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
