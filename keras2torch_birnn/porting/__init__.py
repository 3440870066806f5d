"""Compare a PyTorch model that somebody wrote by hand with the Keras file that it was ported from.

``weight_map`` says where each weight of the file goes in torch. Nothing here knows a layout: it is
read off from the builders of ``layers``.
"""
