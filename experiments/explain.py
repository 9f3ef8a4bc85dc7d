"""Which senses make a prediction: the same as `nanobackpack explain` (commands/explain.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("explain")
