"""Engine plans: model, memory, programs and hardware, before any weight is loaded."""
