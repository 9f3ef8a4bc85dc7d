"""Tiny Shakespeare by characters: train.bin and val.bin in this folder. Run from anywhere:

python data/shakespeare_char/prepare.py                     # downloads 1.1 MB, once
python data/shakespeare_char/prepare.py --input FILE        # any text of yours instead
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
