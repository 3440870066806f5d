"""Compare outputs: tolerances, the comparison of a whole model, and reports."""
