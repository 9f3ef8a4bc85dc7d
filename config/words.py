"""A Backpack of words and their meanings, for the study of docs/senses.md. First

    nanobackpack prepare words

then the study, `nanobackpack words`, which trains it with 1, 4, 8 and 16 senses, and two GPTs; or this alone

    nanobackpack train words
"""

out_dir = "out-words"
eval_interval = 500
eval_iters = 20
log_interval = 50

dataset = "words"
batch_size = 32
block_size = 128

n_layer = 4
n_head = 4
n_embd = 256

optimizer = "muon"
learning_rate = 1e-3
max_iters = lr_decay_iters = 3000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
backup_checkpoint_step = 0
