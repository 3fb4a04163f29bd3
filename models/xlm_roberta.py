"""XLM-RoBERTa: multilingual RoBERTa (Conneau et al., 2020, arXiv:1911.02116)."""

from jaxserve.models.roberta import config_from_hf, hf_tensors

__all__ = ["config_from_hf", "hf_tensors"]
