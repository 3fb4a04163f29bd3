"""What every endpoint uses of HTTP: bodies, answers, server-sent events, middleware."""
