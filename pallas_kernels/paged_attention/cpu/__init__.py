"""Paged attention on CPUs, in C compiled on the machine; see backend.py."""
