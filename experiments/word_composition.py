"""How the tokens of a word share its weight: the same as `nanobackpack word_composition`."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("word_composition")
