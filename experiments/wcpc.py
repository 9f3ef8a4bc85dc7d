"""Chinese words from their context (WPLC): the same as `nanobackpack wcpc` (evaluate/wcpc.py)."""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("wcpc")
