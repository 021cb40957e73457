"""`horizon broker` and `horizon admin`."""
