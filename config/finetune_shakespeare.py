"""Fine-tune GPT-2 XL on Shakespeare: 20 steps, and only what improves is kept.

python data/shakespeare/prepare.py
python train.py config/finetune_shakespeare.py

A smaller model takes less memory: --init_from=gpt2. To fine-tune your own: --init_from=backpack-small
--model_name=backpack-lm.
"""

out_dir = "out-shakespeare"
dataset = "shakespeare"
init_from = "gpt2-xl"
model_name = "gpt2"  # 20 steps are too few for the fresh senses a Backpack would start with

# 1 × 32 × 1024 = 32,768 tokens per step; Shakespeare has 301,966, so 20 steps see each about twice.
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False

eval_interval = 5
eval_iters = 40
always_save_checkpoint = False

wandb_project = "shakespeare"
wandb_run_name = "ft-shakespeare"
