"""Read the bytes and the JSON of files under strict limits."""
