"""Write the result of ``verify`` as a page to read or to attach: one file, nothing from the net.

``page`` makes it, ``heatmap`` its pictures, ``kind`` recognises it. It knows reports and the table
of weights, and no file of Keras.
"""
