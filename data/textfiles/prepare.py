"""Your own texts: files, globs, and folders searched for *.txt, *.md, *.jsonl and *.parquet (also packed as
.gz, .xz or .zst) become data/NAME/. Run from anywhere:

    python data/textfiles/prepare.py notes.txt essays/ --name=mine             # byte-level BPE of 8192 tokens
    python data/textfiles/prepare.py notes.txt essays/ --name=mine --tokenizer=char --val=0.1
"""

from nanobackpack.commands import run_script

if __name__ == "__main__":
    run_script(__file__, __doc__)
