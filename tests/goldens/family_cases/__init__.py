"""Configurations of tiny checkpoints, one module per group of families.

Each module has FAMILIES: by the name of a family, its `config.json`s by the name of the case.
"""
