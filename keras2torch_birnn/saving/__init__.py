"""Write and load checkpoints, the converted files.

What cannot be written is an ``OutputError``, what cannot be read an ``InvalidModelFileError``.
``Raises:`` stands where there is more to say.
"""
