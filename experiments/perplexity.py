"""Perplexity on held-out text: the same as `nanobackpack perplexity` (evaluate/perplexity.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("perplexity")
