"""The migrations, installed as ``jobapi.migrations``."""
