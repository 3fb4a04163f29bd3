"""Heads: functions from the hidden states of a step to its output."""
