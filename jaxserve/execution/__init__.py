"""What runs on the device: the compiled step, its inputs and state, and the runner of it."""
