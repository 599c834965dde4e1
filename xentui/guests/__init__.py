"""The built images of our own guests (sources in guests/)."""
