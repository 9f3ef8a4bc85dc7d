"""A laptop's Backpack on Tiny Shakespeare with a modern context network: more from the same 2,000 steps.

python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char_modern.py
python train.py config/train_shakespeare_char_modern.py --context_network=gpt2 --out_dir=out-gpt2  # compare
"""

out_dir = "out-shakespeare-char-modern"
eval_interval = 500
eval_iters = 20
log_interval = 50
always_save_checkpoint = False

dataset = "shakespeare_char"
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
n_sense_vector = 4
context_network = "modern"

optimizer = "muon"
learning_rate = 1e-3
max_iters = lr_decay_iters = 2000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
