"""What kernels in C share: how they are compiled, and how they use XLA's threads."""
