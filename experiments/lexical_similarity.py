"""Do similar words have similar senses? the same as `nanobackpack lexical_similarity`."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("lexical_similarity")
