"""Perplexity on each language, and on all: the same as `nanobackpack perplexity --per_language`."""

import sys

from nanobackpack.commands import run

if __name__ == "__main__":
    run("perplexity", ["--per_language=True", *sys.argv[1:]])
