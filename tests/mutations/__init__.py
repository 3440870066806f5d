"""Deliberate bugs, a page of them for each family of layers.

A mutation edits one expression of the package (``edit``) or replaces one entry of a table. Each
names the fixtures that must notice it. ``tests/parity/test_mutations.py`` applies them one by one.
"""
