"""Every limit the readers keep against hostile files, in one table.

Sizes are bytes. What is read never needs more memory than a fixed multiple of the file's own size.
"""

from __future__ import annotations

MIB = 1 << 20

# Texts and names
JSON_BYTES = 32 * MIB
JSON_DEPTH = 200
JSON_VALUES = 2_000_000
JSON_DIGITS = 19
CALLS = 50_000  # of layers, in the model's straight-line code
NAME_BYTES = 64 << 10  # Keras writes names of layers up to 64,512 bytes
NAMES = 100_000

# HDF5 objects
GROUP_DEPTH = 64
MEMBERS = 100_000
RANK = 32
CHUNKS = 100_000  # of one file, all datasets together
INLINE_BYTES = 64 << 10
OPEN_GROUPS = 4096

# TensorFlow's files: the index of a checkpoint, the objects of a SavedModel
TABLE_BYTES = 64 * MIB
TABLE_KEYS = 1_000_000
CHECKPOINT_SHARDS = 1000
OBJECT_GRAPH_BYTES = 256 * MIB
TRACKED_OBJECTS = 1_000_000

# Inflating: at most this many times the compressed file, plus a floor for small files
INFLATE_FACTOR = 64
INFLATE_FLOOR = 64 * MIB

# The .keras archive
ARCHIVE_MEMBERS = 10_000
DIRECTORY_BYTES = 4 * MIB

# What one small batch makes in a model, all layers together: 2 GiB in float64
BATCH_VALUES = 1 << 28

# OUT: the part of a .pt file that says what its bytes are, and its members, one for each tensor
PROGRAM_BYTES = 64 * MIB
OUT_MEMBERS = 200_000

# The process that runs the HDF5 library
PARSER_CPU_SECONDS = 5
PARSER_WALL_SECONDS = 120.0  # on a busy machine or a slow disk an honest file may need some
PARSER_MEMORY = 512 * MIB  # on top of what the process has mapped when the parsing starts
REPLY_BYTES = 96 * MIB
BATCH = 512


def inflated(stored: int) -> int:
    """Bytes that ``stored`` compressed bytes may inflate to."""
    return INFLATE_FACTOR * stored + INFLATE_FLOOR
