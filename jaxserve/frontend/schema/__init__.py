"""What a user may write in a request, field by field, and how it is checked. No HTTP."""
