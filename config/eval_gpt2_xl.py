"""The loss of GPT-2-xl (1558M parameters) on OpenWebText, with no training.

python train.py config/eval_gpt2_xl.py
"""

out_dir = "eval-gpt2-xl"
init_from = "gpt2-xl"
model_name = "gpt2"

eval_only = True
batch_size = 8
eval_iters = 500  # more than in training, for a good estimate
