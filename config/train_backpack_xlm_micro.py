"""A small Backpack for all languages of Common Crawl at once.

python data/common_crawl/prepare.py --shards 100
torchrun --standalone --nproc_per_node=8 train.py config/train_backpack_xlm_micro.py --huge_pack_dir=FOLDER

Without --huge_pack_dir it trains on data/common_crawl.
"""

out_dir = "backpack_xlm"
dataset = "common_crawl"
tokenizer_name = "xlm-250k"
data_bin_dtype = "uint32"
wandb_log = True
wandb_run_name = "backpack-xlm-micro"

n_layer = 6
n_head = 6
n_embd = 384

gradient_accumulation_steps = 5  # per process: 12 × 1024 × 5 × 8 processes = 491,520 tokens per step
max_iters = lr_decay_iters = 200000
eval_interval = 1000
log_interval = 10
