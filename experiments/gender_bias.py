"""Gender bias of nouns and its remedies: the same as `nanobackpack bias` (evaluate/bias.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("bias")
