"""Files and runs that may go wrong: written whole, read within limits, ended in good order."""
