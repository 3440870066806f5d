"""keras-self-attention 0.46, see ``self_attention.py``."""

from keras2torch_birnn.plugins.self_attention import register_edition

register_edition("0.46")
