"""Scale senses of a word: the same as `nanobackpack steer` (commands/steer.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("steer")
