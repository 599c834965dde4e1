"""A recording on disk: write, read, rebuild."""
