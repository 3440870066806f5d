"""Measurements of the documentation: ``python -m benchmarks NAME [options]``.

``run`` has the cases, contenders and results of each; ``contenders`` those beside the four of
``k2t bench``, which measures all of them (``keras2torch_birnn/cli/bench``). ``convert`` times whole
commands; ``gpu`` is for machines with a CUDA device.
"""
