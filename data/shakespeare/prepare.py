"""Tiny Shakespeare by GPT-2's tokens: train.bin (301,966 tokens) and val.bin (36,059). Run from anywhere:

python data/shakespeare/prepare.py                          # downloads the text and the tokenizer, once
python data/shakespeare/prepare.py --input FILE --tokenizer FOLDER      # local copies of them
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
