"""The Backpack of `make demo`: a small character model that any machine trains in three minutes or less.

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
max_minutes = 3  # a slow or busy machine takes fewer steps
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
