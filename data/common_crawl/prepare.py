"""Many languages by XLM-R's tokens: LANGUAGE_train.bin, LANGUAGE_val.bin, LANGUAGE_evaluation.bin. First put
LANGUAGE.txt or LANGUAGE.txt.xz, one document a line, beside this file, or name them. Run from anywhere:

    python data/common_crawl/prepare.py
    python data/common_crawl/prepare.py --input de.txt.xz fr.txt.xz --shards 100  # de/de_0.bin, ...
    python data/common_crawl/prepare.py --languages am sr                         # CC-100 of the hub
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
