"""The small Backpack that comes with the package, words-small: trained on WordNet alone, which is free. First

    nanobackpack prepare words --input dict-wn_3.0-37_all.deb --tokenizer=bpe:18432 --out=data/words_small

with https://deb.debian.org/debian/pool/main/w/wordnet/dict-wn_3.0-37_all.deb, then

    nanobackpack train words_small
"""

out_dir = "out-words-small"
eval_interval = 500
eval_iters = 20
log_interval = 50
always_save_checkpoint = False  # out_dir stands for its best state: WordNet is small

dataset = "words_small"
batch_size = 32
block_size = 128

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.1

optimizer = "muon"
learning_rate = 1e-3
max_iters = lr_decay_iters = 3000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
backup_checkpoint_step = 0
