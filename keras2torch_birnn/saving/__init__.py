"""Write and load checkpoints, the converted files."""
