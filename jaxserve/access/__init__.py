"""Who sends a request, and whether the server admits it; nothing here knows HTTP."""
