"""Paged attention on NVIDIA GPUs: backend.py is the whole, smXX.py what an architecture does."""
