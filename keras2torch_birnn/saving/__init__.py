"""Write and load the converted file (OUT)."""
