"""/tokenize and /detokenize."""
