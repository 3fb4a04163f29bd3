"""Paged attention on TPUs: entry point in backend.py, kernels in the other files."""
