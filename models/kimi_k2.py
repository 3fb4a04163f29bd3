"""Kimi K2: DeepSeek-V3 with more experts and fewer heads (Kimi Team, 2025, arXiv:2507.20534)."""

from jaxserve.models.deepseek_v3 import config_from_hf, hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]
