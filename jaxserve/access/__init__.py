"""Principals, API keys and admission policies; nothing here knows HTTP."""
