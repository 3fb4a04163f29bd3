"""Execution on devices: the compiled step, its inputs and state, and its runner."""
