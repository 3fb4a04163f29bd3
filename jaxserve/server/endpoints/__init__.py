"""One file an endpoint, named for its path."""
