"""Speed and memory: the same as `nanobackpack bench`, see nanobackpack/bench/."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("bench")
