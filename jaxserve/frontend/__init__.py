"""Request schemas, prompt rendering, sampling defaults, output processing and beam search."""
