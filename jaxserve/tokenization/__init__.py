"""Tokenizers, and the tokens that end a text."""
