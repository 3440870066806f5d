"""Read HDF5: the library runs in a child process, the bytes are read and checked here."""
