"""To and from other programs."""
