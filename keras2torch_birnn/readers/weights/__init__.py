"""Locate, check and read a model's weights."""
