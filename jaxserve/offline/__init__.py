"""`LLM`: an engine in the caller's own process, and the outputs it returns."""
