"""keras-self-attention 0.46, see ``self_attention.py``."""

from keras2torch_birnn.plugins.self_attention import switch_on

switch_on("0.46")
