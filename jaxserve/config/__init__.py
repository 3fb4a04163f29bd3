"""Settings: options with their limits, and the command line's flags for them. No jax."""
