"""``k2t bench``: time a model, or a stack of random layers, against other implementations.

Every contender runs in a process of its own (``worker``), idle while another is timed; ``measure``
asserts parity first and goes round robin. Nothing here is imported by anything but the command.
"""

DRAWN_BY = "k2t bench"  # the mark of a plot in its file
