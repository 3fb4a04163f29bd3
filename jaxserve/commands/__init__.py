"""What the command line can do: a file for each command, with `add_arguments` and `run`.

A command imports what is heavy when it runs, so that `--help` answers at once.
"""
