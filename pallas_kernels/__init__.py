"""Device kernels for inference with JAX: each op has a plain-JAX reference and faster backends."""
