"""Plain PyTorch source of a converted model; its entry is ``write_source.write_source``.

``layers.EMITTERS`` says how a layer is made and called, in text. ``forward`` follows the graph of
the converted model, ``helpers`` holds what torch lacks, and ``snippets`` copies the definitions
that a model needs.
"""
