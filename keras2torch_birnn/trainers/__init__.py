"""Training as Keras does it: what was compiled, the rules of its optimizers, losses, penalties.

``compiled`` reads what was compiled, ``rules`` has the updates of Keras' optimizers, ``optimizer``
applies them, ``stored`` finds its state in a file. ``k2t.training`` puts all of it together.
"""
