"""Sample text from a trained model: the same as `nanobackpack sample` (commands/sample.py).

python sample.py --out_dir=out-shakespeare-char
python sample.py --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=5
"""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("sample")
