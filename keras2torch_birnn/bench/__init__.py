"""``k2t bench``: a model, or a stack made up for it, timed against what else could run it.

Every contender runs in a process of its own (``worker``), idle while another is timed; ``measure``
asserts parity first and goes round robin. Nothing here is imported by anything but the command.
"""
