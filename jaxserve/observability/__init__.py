"""What an operator sees: log, metrics, statistics, and where the time goes. No jax."""
