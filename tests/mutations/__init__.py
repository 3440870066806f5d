"""The mutation law: what changes the mapping from Keras to torch must break parity with real Keras.

``mutator.py`` changes one operator, constant or argument at a time, ``judge.py`` runs the models of
``cases.txt`` that reach it, ``survivors.txt`` names what may stay unnoticed, and why.
``by_hand.py`` has bugs that stand in tables: of masks, generations and merges.
``tests/parity/test_mutations.py`` runs both.
"""
