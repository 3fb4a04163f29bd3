"""The pure functions that models are made of: projections, norms, rotations, attention, lookup."""
