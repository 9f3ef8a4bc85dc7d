"""Backpack-small on the Chinese CLUE corpora, one token per character.

python data/clue_small/prepare.py
torchrun --standalone --nproc_per_node=8 train.py config/train_clue_small.py
"""

out_dir = dataset = "clue_small"
tokenizer_name = "chinese-character-bert"
wandb_log = True
wandb_run_name = "backpack-clue-124M"

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 500000
eval_interval = 1000
log_interval = 10
