"""What may go wrong: writing files, reading strangers' files, fetching from elsewhere, ending a run."""
