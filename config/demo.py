"""The Backpack of `make demo`: a small character model that a laptop trains in about three minutes.

python train.py config/demo.py --dataset=shakespeare_char
"""

out_dir = "out-demo"
eval_interval = 500
eval_iters = 20
log_interval = 100
always_save_checkpoint = False

dataset = "shakespeare_char"
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
n_sense_vector = 4

optimizer = "muon"  # --optimizer=adamw: nanoBackpackLM's recipe, with the same rates
learning_rate = 1e-3
max_iters = lr_decay_iters = 4000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
