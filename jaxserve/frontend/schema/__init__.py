"""Pydantic models of request fields, and their validation. Independent of HTTP."""
