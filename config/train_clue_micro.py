"""A Backpack of half the width and depth on the Chinese CLUE corpora.

python data/clue_small/prepare.py
torchrun --standalone --nproc_per_node=8 train.py config/train_clue_micro.py
"""

out_dir = "clue_micro"
dataset = "clue_small"
tokenizer_name = "chinese-character-bert"
wandb_log = True
wandb_run_name = "backpack-clue-30M"

n_layer = 6
n_head = 6
n_embd = 384

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 500000
eval_interval = 1000
log_interval = 10
