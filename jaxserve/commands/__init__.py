"""Commands of the command line, one module each, with `add_arguments` and `run`.

`run` imports large packages, so that `--help` is fast.
"""
