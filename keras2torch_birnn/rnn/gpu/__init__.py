"""The engine "triton": one Triton kernel and one matrix product for each step of a layer on a GPU.

Only ``kernels`` and ``functions`` import Triton, which torch's builds for CUDA bring along.
"""
