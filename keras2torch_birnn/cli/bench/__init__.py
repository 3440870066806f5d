"""``k2t bench``: time a model against plain PyTorch, ONNX Runtime and Keras.

Every contender runs in a process of its own (``contenders``), idle while another is timed;
``measure`` asserts parity first and goes round robin. ``stack`` writes the Keras file that --rnn
asks for. Nothing here is imported by anything but the command.
"""
