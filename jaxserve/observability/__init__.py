"""Logging, metrics, statistics and the timeline of steps."""
