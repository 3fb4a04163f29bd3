"""Options with their limits, and the command-line flags made of them."""
