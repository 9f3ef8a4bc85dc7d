"""Texts on a topic: the same as `nanobackpack topic` (evaluate/topic.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("topic")
