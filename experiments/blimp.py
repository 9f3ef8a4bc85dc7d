"""Sentence pairs (BLiMP): the same as `nanobackpack blimp` (evaluate/blimp.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("blimp")
