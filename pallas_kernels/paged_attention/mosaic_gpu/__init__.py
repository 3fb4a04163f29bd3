"""Paged attention on NVIDIA GPUs: common code in backend.py, one smXX.py per architecture."""
