"""OpenWebText by GPT-2's tokens, <|endoftext|> after each document; 0.05 % of the documents are for
validation. Run from anywhere:

    python data/openwebtext/prepare.py                          # the hub's copy, some 40 GB of text
    python data/openwebtext/prepare.py --input FOLDER           # a local copy: parquet, jsonl, txt
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
