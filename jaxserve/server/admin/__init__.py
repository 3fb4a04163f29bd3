"""Health, metrics, models, version and the OpenAPI document."""
