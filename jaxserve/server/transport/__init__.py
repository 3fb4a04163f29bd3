"""Sockets, TLS and HTTP/1.1 under the application."""
