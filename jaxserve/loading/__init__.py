"""Checkpoint loading: from a folder or a hub name to parameters on devices.

Import from the modules: the package itself loads no jax, so that host code may use the first two.
"""
