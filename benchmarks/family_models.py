r"""Write checkpoints with random weights of four model families, for peers.py.

    PYTHON -P benchmarks/family_models.py --peers-home HOME [--only qwen3-moe-90m]

PYTHON has torch and transformers; -P keeps them from importing kernels.py of this folder. HOME has
models/llama-60m, whose tokenizer is reused, so all engines run the same workload. Weights are
normal with a standard deviation of 0.02; the names give the number of parameters.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from transformers import AutoConfig, AutoModelForCausalLM

TOKENIZER = "llama-60m"
STD = 0.02

COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
FAMILIES: dict[str, dict[str, Any]] = {
    # 31 of 92 million parameters are active.
    "qwen3-moe-90m": {
        "model_type": "qwen3_moe",
        "intermediate_size": 1408,
        "moe_intermediate_size": 352,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    # Three layers with a gated delta rule to each with attention.
    "qwen3.5-40m": {
        "model_type": "qwen3_5_text",
        "intermediate_size": 1408,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    # Five layers with a window to each without.
    "gemma3-50m": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "intermediate_size": 1408,
        "sliding_window": 256,
        "query_pre_attn_scalar": 64,
    },
    # Windows, sinks, and 4 of 16 experts.
    "gpt-oss-70m": {
        "model_type": "gpt_oss",
        "intermediate_size": 256,
        "num_local_experts": 16,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
}


def write(name: str, models: Path) -> int:
    """Write a checkpoint with the tokenizer; return its number of parameters."""
    fields = COMMON | FAMILIES[name]
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM  # its methods are untyped
    model = auto.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, STD)
    folder = models / name
    model.save_pretrained(folder)
    for file in (models / TOKENIZER).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Write the checkpoints that the command line names."""
    parser = argparse.ArgumentParser(description="Write random checkpoints of model families.")
    parser.add_argument("--peers-home", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    args = parser.parse_args()
    for name in args.only:
        print(f"{name}: {write(name, args.peers_home / 'models') / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
