"""Train a converted model on where Keras stopped: its optimizer, loss, penalties, constraints."""
