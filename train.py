"""Train a Backpack, or with --model_name=gpt2 the Transformer baseline.

    python train.py config/train_shakespeare_char.py
    python train.py config/train_shakespeare_char.py --device=cpu --max_iters=2000
    python train.py --help

Settings: defaults < config files in the order given < flags.
"""

from nanobackpack import cli, config
from nanobackpack.train import trainer

if __name__ == "__main__":
    cli.run(trainer.train, config.TrainConfig)
