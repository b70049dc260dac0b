"""Benchmarks: ``python -m benchmarks.NAME``; alone, or beside a checkout of the official code."""
