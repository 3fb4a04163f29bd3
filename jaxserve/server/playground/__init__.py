"""The playground: a web page that is a client of the server."""
