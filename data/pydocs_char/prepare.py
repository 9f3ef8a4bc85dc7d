"""Python's own help texts by characters, from the standard library: needs no network. Run from anywhere:

python data/pydocs_char/prepare.py
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
