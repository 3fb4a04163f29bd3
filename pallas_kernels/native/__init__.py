"""Support for kernels in C: compilation, and the use of XLA's thread pool."""
