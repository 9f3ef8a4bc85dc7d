"""Train a model: the same as `nanobackpack train`, see nanobackpack/commands/train.py.

python train.py config/train_shakespeare_char.py
python train.py --help
"""

from nanobackpack.commands import run

if __name__ == "__main__":
    run("train")
