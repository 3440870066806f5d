"""The engine "triton": the steps of a layer on a GPU, in two launches each or all in one.

Only kernels and what they call import Triton, which torch's builds for CUDA bring along.
"""
