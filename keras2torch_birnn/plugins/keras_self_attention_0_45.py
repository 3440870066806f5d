"""keras-self-attention 0.28 to 0.45, see ``self_attention.py``."""

from keras2torch_birnn.plugins.self_attention import register_edition

register_edition("0.45")
