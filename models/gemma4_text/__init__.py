"""Gemma 4 (Google DeepMind, 2026): windows, shared keys and values, and an input for each layer.

The last layers have no keys and values of their own: they attend over those of the last earlier
layer of their type. In some sizes each layer also receives an embedding of its own of every token,
and global layers use their keys as values. The parts of a model are in `modules.py`.
"""

from jaxserve.models.gemma4_text.reading import config_from_hf as config_from_hf
from jaxserve.models.gemma4_text.reading import hf_tensors as hf_tensors
