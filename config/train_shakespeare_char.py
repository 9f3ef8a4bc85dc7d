"""A small character-level Backpack on Tiny Shakespeare: minutes on a GPU.

python data/shakespeare_char/prepare.py
python train.py config/train_shakespeare_char.py
"""

out_dir = "out-shakespeare-char"
eval_interval = 250  # often: it overfits
log_interval = 10
always_save_checkpoint = False  # out-shakespeare-char stands for its best state

dataset = "shakespeare_char"
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
n_sense_vector = 4
dropout = 0.2

optimizer = "muon"  # --optimizer=adamw: nanoBackpackLM's recipe, with the same rates
learning_rate = 1e-3  # small networks can go faster
max_iters = lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # few tokens per step, so a longer memory
warmup_iters = 100
