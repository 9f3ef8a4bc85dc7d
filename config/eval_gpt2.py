"""The loss of GPT-2 (124M parameters) on OpenWebText, with no training.

python train.py config/eval_gpt2.py
"""

out_dir = "eval-gpt2"
init_from = "gpt2"
model_name = "gpt2"

eval_only = True
batch_size = 8
eval_iters = 500  # more than in training, for a good estimate
