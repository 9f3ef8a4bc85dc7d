"""What may go wrong: writing files, reading untrusted files, fetching from elsewhere, ending a run."""
