"""Paged attention on TPUs: backend.py is the whole, the other files its parts."""
