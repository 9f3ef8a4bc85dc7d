"""GPT-2 small on the Chinese TigerBot corpus, the Transformer baseline of train_tigerbot.py.

torchrun --standalone --nproc_per_node=8 train.py config/train_tigerbot_gpt2.py
"""

out_dir = "gpt_tigerbot_small"
dataset = "tigerbot"
tokenizer_name = "chinese-character-bert"
model_name = "gpt2"
wandb_log = True
wandb_run_name = "gpt2-tigerbot-124M"

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 500000
eval_interval = 1000
log_interval = 10
