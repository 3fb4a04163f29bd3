"""Paged attention on CPUs in C, compiled where it runs; see backend.py."""
