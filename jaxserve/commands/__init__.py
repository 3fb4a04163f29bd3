"""Commands of the command line, one file each, with `add_arguments` and `run`.

A command imports what is heavy when it runs, so that `--help` answers at once.
"""
