"""CLUE's Chinese corpora by Chinese BERT's tokens, each document [CLS] ... [SEP]: 0.1 % of the documents are
for evaluation, then 0.05 % for validation. First put the folders wiki_zh_2019, webtext2019zh and new2016zh of
https://github.com/brightmart/nlp_chinese_corpus, or some of them, beside this file, or name the folder they
are in. Run from anywhere:

    python data/clue_small/prepare.py
    python data/clue_small/prepare.py --input FOLDER
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
