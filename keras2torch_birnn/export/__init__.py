"""Converted models in the formats of other runtimes: one module for each."""
