"""Every limit on what a file may ask for, in one table.

The reader of a file never needs more memory than a fixed multiple of the file's own size. Bytes
unless a comment says otherwise. ``SECURITY.md`` lists the limits; a test compares it with this.
"""

from __future__ import annotations

MIB = 1 << 20

# JSON (architecture, index of shards): bounds what the parser builds from it.
MAX_JSON_BYTES = 32 * MIB
MAX_JSON_DEPTH = 200  # below Python's own limit of recursion
MAX_JSON_VALUES = 2_000_000
MAX_JSON_DIGITS = 19  # of an integer; Python takes quadratic time for long ones

# Architecture: recursion over models, and straight-line code that shared models multiply.
MAX_MODEL_DEPTH = 50  # models and wrappers inside each other; honest files have two or three
MAX_MERGE_DEPTH = 20  # Keras 1: Merge layers inside each other; honest files have one or two
MAX_CALLS = 50_000  # of layers, in the model's straight-line code
MAX_CONSTANT_DEPTH = 25  # of the lists of a constant

# Sizes in options and shapes: no number of a file reaches an allocation that no weight backs up.
MIN_INT64, MAX_INT64 = -(1 << 63), (1 << 63) - 1
MAX_SIZE = (1 << 31) - 1  # of one option or dimension
MAX_RANK = 32  # of arrays, shapes and slices, as in HDF5 and older NumPy
MAX_AXIS = MAX_RANK - 1
MAX_PARTS = 4096  # that a Split or Unstack makes
MAX_EINSUM_LENGTH = 200  # characters of an equation
MAX_LAYER_VALUES = 1 << 29  # in the output of one layer for one sample
MAX_OPERATION_VALUES = 1 << 24  # in the output of one operation for one sample
MAX_OPERATION_RANK = 25  # torch's CUDA kernels index no more dimensions
MAX_BATCH_VALUES = 1 << 28  # of one small batch in all layers together: 2 GiB in float64
MAX_FREE_VALUES = 1 << 24  # of these, without regard to weights
MAX_VALUES_PER_WEIGHT = 16  # and on top of that: a small file asks for little
MAX_TRIED_BATCHES = 20  # sizes, where an operation's options fit no usual batch
MAX_LISTED_FILES = 2000  # in a folder that is no model, to name those in it
MAX_TRIED_SHAPES = 600  # where a model does not take every length
MAX_TRIED_LENGTH = 4096
MAX_OPEN_SIZES = 6  # of inputs, whose subsets are tried where an export looks for fixed ones

# Products of integers that the kernel adds in 32 bits (set_precision "int8"): features or units
MAX_INT8_ROW = 1 << 17

# HDF5 objects: the work of the parser process and the size of its answers.
MAX_NAME_BYTES = 64 << 10  # Keras writes names of layers up to 64,512 bytes
MAX_NAMES = 100_000  # in one list
MAX_GROUP_DEPTH = 64
MAX_GROUP_MEMBERS = 100_000
MAX_CHUNKS = 100_000  # of one file, all datasets together

# TensorFlow's files: the index of a checkpoint, and the objects of a SavedModel
MAX_TABLE_BYTES = 64 * MIB
MAX_TABLE_KEYS = 250_000
MAX_CHECKPOINT_SHARDS = 1000  # also of a TF.js model; each is opened
MAX_OBJECT_GRAPH_BYTES = 256 * MIB
MAX_TRACKED_OBJECTS = 250_000

# Decompression: at most this many times the compressed file, plus a constant for small files.
MAX_INFLATE_FACTOR = 64
MAX_INFLATE_BYTES = 64 * MIB

# The .keras archive
MAX_ARCHIVE_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 4 * MIB  # of the central directory that are read at once

# OUT: data.pkl, which describes the tensors of a .pt file; and its members, one for each tensor
MAX_PROGRAM_BYTES = 64 * MIB
MAX_OUT_MEMBERS = 200_000

# Options of a compiled optimizer, by their size
MAX_OPTIMIZER_NUMBER = 10**18

# The process that runs the HDF5 library
MAX_PARSER_CPU_SECONDS = 5
MAX_PARSER_SECONDS_PER_GIB = 64  # of the file, on top of that; to read one takes a second or two
MAX_PARSER_WALL_SECONDS = 120.0  # per answer; a busy machine or a slow disk needs some of it
MAX_PARSER_MEMORY = 512 * MIB  # on top of what it has mapped at the start, and twice the file
MAX_REWRITE_SECONDS = 600  # to change a copy; of computing, and of waiting for it
MAX_REPLY_BYTES = 96 * MIB

# The process that runs the live Keras, for `k2t verify --against keras`
MAX_KERAS_SECONDS = 600

# The process that runs an exported file, for `k2t export` and `k2t verify`
MAX_EXPORTED_SECONDS = 600
MAX_EXPORTED_MEMORY = 4096 * MIB  # and 8 times the file and those beside it
MAX_EXPORTED_OUTPUT = 1024 * MIB
MAX_ONNX_BYTES = 2047 * MIB  # of the weights in one .onnx file

# Work and caches inside the package: a file that goes beyond them is not refused.
MAX_PROGRAMS_PER_MODEL = 64  # sets of input sizes that are known; each program holds its weights

# Messages: names from a file are cut to these numbers of characters.
MAX_PRINTED_NAME = 200
MAX_PRINTED_LINE = 1000
MAX_SOURCE_NAME = 40  # of names in exported source
MAX_LAYERS_IN_NOTE = 8  # names of layers; the rest are counted


def max_inflated_bytes(stored: int) -> int:
    """Return how many bytes ``stored`` compressed bytes may inflate to."""
    return MAX_INFLATE_FACTOR * stored + MAX_INFLATE_BYTES
