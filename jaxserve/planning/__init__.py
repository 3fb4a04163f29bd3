"""Plans of engines: model, memory, programs and hardware, before anything is loaded."""
