"""Words and their meanings, a line each, of WordNet (free for any purpose) and of GCIDE (GPL): two packages
of Debian, together 25 MB. Of 2 % of the words all lines are for validation. Run from anywhere:

    python data/words/prepare.py                                # downloads the packages, once
    python data/words/prepare.py --input dict-wn_3.0-37_all.deb # local copies, or WordNet alone
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
