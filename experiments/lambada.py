"""Last words of passages (LAMBADA): the same as `nanobackpack lambada` (evaluate/lambada.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("lambada")
