"""Backpack-small on OpenWebText: about four days on 8 A100 40GB.

python data/openwebtext/prepare.py
torchrun --standalone --nproc_per_node=8 train.py config/train_backpack_lm.py
python sample.py --init_from=backpack-small
"""

out_dir = "backpack-small"
wandb_log = True
wandb_run_name = "backpack-small"

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
eval_interval = 1000
log_interval = 10
