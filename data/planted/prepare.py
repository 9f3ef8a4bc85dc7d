"""A made-up language whose bias, topics and facts are known: needs no network. Run from anywhere:

python data/planted/prepare.py
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
