"""Text to token ids, and token files to windows."""
