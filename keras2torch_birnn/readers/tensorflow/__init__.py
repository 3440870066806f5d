"""Read TensorFlow's files without TensorFlow: checkpoints, object graphs, metadata of Keras."""
