"""An inference engine for open-weight language models on JAX."""

__version__ = "0.1.0"
