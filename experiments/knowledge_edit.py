"""Change what the senses of a word predict: the same as `nanobackpack edit` (commands/edit.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("edit")
