#!/usr/bin/env bash
# Everything that needs a GPU, in one call: its tests, the benchmark, and the whole Shakespeare run.
#     bash tests/gpu.sh [FOLDER FOR RESULTS]      with an environment that has PyTorch for CUDA
# Shakespeare must have been prepared (data/shakespeare_char), or lie at ../shared/data/tinyshakespeare.
set -eu
cd "$(dirname "$0")/.."
out=${1:-out-gpu}
mkdir -p "$out"
text=../shared/data/tinyshakespeare/input.txt
[ -f data/shakespeare_char/train.bin ] || python data/shakespeare_char/prepare.py $([ -f $text ] && echo --input=$text)
python -m pytest tests/test_gpu.py tests/test_models.py tests/test_generate.py | tee "$out/tests.txt"
python bench.py --device=cuda --json="$out/bench.json" --plot="$out/bench.png" | tee "$out/bench.txt"
python train.py config/train_shakespeare_char.py --out_dir="$out/shakespeare" | tee "$out/shakespeare.txt"
if [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ]; then  # two processes, both ways; and their losses side by side
  for how in ddp fsdp; do
    torchrun --standalone --nproc_per_node=2 train.py config/train_shakespeare_char.py --distributed=$how \
      --optimizer=adamw --max_iters=100 --eval_interval=50 --out_dir="$out/$how" | tee "$out/$how.txt"
  done
fi
