"""A small Backpack for a few megabytes of text in tokens of words or characters: minutes on a CPU.

python train.py config/small.py --dataset=NAME --out_dir=out-NAME
"""

eval_interval = 250
eval_iters = 20
log_interval = 50
always_save_checkpoint = False  # out_dir stands for its best state: small data overfits soon

batch_size = 16
block_size = 128

n_layer = 4
n_head = 4
n_embd = 192

optimizer = "muon"
learning_rate = 1e-3
max_iters = lr_decay_iters = 1500
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 50
