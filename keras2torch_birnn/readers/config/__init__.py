"""Parse the configuration of a model, in the words of every Keras version."""
