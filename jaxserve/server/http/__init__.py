"""HTTP: bodies, answers, server-sent events and middleware, for all endpoints."""
