"""Measurements of the documentation: ``python -m benchmarks NAME [options]``.

Read ``tasks`` (what is timed), then ``run`` (how results are written); ``k2t bench`` in
``keras2torch_birnn/bench`` has the contenders of all and measures them, each in its own process.
``contenders`` adds those of single questions. ``convert`` times whole commands; ``gpu`` is for
machines with a CUDA device. The tables of the results are described in ``tools/tables.py``.
"""
