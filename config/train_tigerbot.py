"""Backpack-small on the Chinese TigerBot corpus.

python data/tigerbot/prepare.py
torchrun --standalone --nproc_per_node=8 train.py config/train_tigerbot.py
"""

out_dir = "backpack_tigerbot_small"
dataset = "tigerbot"
tokenizer_name = "chinese-character-bert"
wandb_log = True
wandb_run_name = "backpack-tigerbot-124M"

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 500000
eval_interval = 1000
log_interval = 10
