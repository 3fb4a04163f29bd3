"""Measuring an engine: what `jaxserve bench` runs."""
