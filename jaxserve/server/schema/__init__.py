"""The parts of request and response bodies that several endpoints share."""
