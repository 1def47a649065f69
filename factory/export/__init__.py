"""Export a published version to formats that other programs load, each with a parity report."""
