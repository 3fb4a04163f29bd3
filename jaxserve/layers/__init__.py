"""Pure functions that models are made of: matmuls, norms, rotary embeddings, attention, lookup."""
