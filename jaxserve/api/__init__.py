"""Contracts between the parts: requests, parameters, step plans and token batches."""
