"""The loss of GPT-2-large (774M parameters) on OpenWebText, with no training.

python train.py config/eval_gpt2_large.py
"""

out_dir = "eval-gpt2-large"
init_from = "gpt2-large"
model_name = "gpt2"

eval_only = True
batch_size = 8
eval_iters = 500  # more than in training, for a good estimate
