"""Heads: from the hidden states of a step to what its rows yield."""
