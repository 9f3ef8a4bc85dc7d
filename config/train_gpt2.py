"""GPT-2 small on OpenWebText, the Transformer baseline of train_backpack_lm.py.

torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
"""

model_name = "gpt2"
wandb_log = True
wandb_run_name = "gpt2-124M"

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 500000
eval_interval = 1000
log_interval = 10
