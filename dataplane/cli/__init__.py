"""`horizon server` and `horizon client`."""
