"""TigerBot's Chinese pretraining texts by Chinese BERT's tokens, [CLS] ... [SEP]: 0.1 % of the documents are
for evaluation, then 0.05 % for validation. Run from anywhere:

    python data/tigerbot/prepare.py                             # the hub's copy
    python data/tigerbot/prepare.py --input FOLDER              # a local copy: parquet or jsonl
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
