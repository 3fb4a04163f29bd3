"""From a user's request to the engine's and from its tokens back to text. No jax."""
