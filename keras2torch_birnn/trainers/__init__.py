"""Train a Keras model on in torch, and write its weights back into a copy of its file.

``resuming`` (``k2t.training``) puts together what was compiled, optimizer, loss and penalties;
``writing_back`` finds what changed and where it goes.
"""
