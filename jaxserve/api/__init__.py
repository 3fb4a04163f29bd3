"""Types shared by the packages: requests, sampling parameters, step plans and token batches."""
