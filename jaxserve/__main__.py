"""`python -m jaxserve` is `jaxserve`."""

from jaxserve.cli import run

run()
