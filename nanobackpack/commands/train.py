"""Train a Backpack, or with --model_name=gpt2 the Transformer baseline.

    nanobackpack train shakespeare_char                        # a config file that comes with nanobackpack
    nanobackpack train shakespeare_char --device=cpu --max_iters=2000
    nanobackpack train mine.py --out_dir=out-mine              # your own: Python, one setting = value a line
    nanobackpack train mine.py --out_dir=out-mine --init_from=resume
    torchrun --standalone --nproc_per_node=8 -m nanobackpack train backpack_lm

Settings: defaults < config files in the order given < flags. The bundled config files are listed in
config/README.md; `train_` and `.py` may be left out of their names. `python train.py ...` does the same.
"""

from __future__ import annotations

from nanobackpack.config import TrainConfig


def main(settings: TrainConfig) -> int | None:
    from nanobackpack.train.trainer import train  # needs torch

    return train(settings)
