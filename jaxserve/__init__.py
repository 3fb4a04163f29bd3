"""An inference engine for open-weight language models on JAX."""

__all__ = ["__version__"]

__version__ = "0.1.0"
