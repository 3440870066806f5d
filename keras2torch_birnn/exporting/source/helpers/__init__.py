"""Parts of generated source code: every module here is copied from, definition by definition.

They import torch and the standard library alone, and lines are short enough for any formatter.
"""
