"""The loss of GPT-2-medium (350M parameters) on OpenWebText, with no training.

python train.py config/eval_gpt2_medium.py
"""

out_dir = "eval-gpt2-medium"
init_from = "gpt2-medium"
model_name = "gpt2"

eval_only = True
batch_size = 8
eval_iters = 500  # more than in training, for a good estimate
