"""The native CPU kernel: C++ beside this file, a plain shared library without torch or Python.

``library`` loads it (no torch), ``op`` registers it with torch. Built by ``setup.py`` where there
is a compiler; without it everything runs in plain torch.
"""
