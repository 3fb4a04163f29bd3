"""From a folder or a hub name to a tokenizer, sampling defaults, and parameters on their devices.

Import from the modules: the package itself loads no jax, so that host code may use the first two.
"""
