"""The report: one self-contained page made from an output's tables alone."""
