"""Tools: ``python -m tools.NAME``."""
