#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes: its tests, the whole Shakespeare run, the benchmark.
#     bash tests/gpu.sh [FOLDER FOR RESULTS]      with an environment that has PyTorch for CUDA
# Shakespeare must have been prepared (data/shakespeare_char), or lie at ../shared/data/tinyshakespeare.
# A part that fails, or takes too long, does not keep the others from running; the exit status is then 1.
set -u
cd "$(dirname "$0")/.."
out=${1:-out-gpu}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
failed=0
part() {  # NAME SECONDS COMMAND...: run it, keep what it prints in NAME.txt
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  local status=${PIPESTATUS[0]}
  echo "== $name: status $status, $((SECONDS - start)) s" | tee -a "$out/parts.txt"
  [ "$status" = 0 ] || failed=1
}
text=../shared/data/tinyshakespeare/input.txt
[ -f data/shakespeare_char/train.bin ] || python3 data/shakespeare_char/prepare.py $([ -f $text ] && echo --input=$text)
part tests 120 python3 -m pytest -n 8 tests/test_gpu.py tests/test_kernels.py tests/test_models.py tests/test_generate.py
for optimizer in muon adamw; do
  part shakespeare-$optimizer 115 python3 train.py config/train_shakespeare_char.py --optimizer=$optimizer \
    --out_dir="$out/shakespeare-$optimizer"
done
part bench 190 python3 bench.py --device=cuda --json="$out/bench.json"
if [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ]; then  # two processes, both ways; and their losses side by side
  for how in ddp fsdp; do
    part $how 100 torchrun --standalone --nproc_per_node=2 train.py config/train_shakespeare_char.py \
      --distributed=$how --max_iters=100 --eval_interval=50 --out_dir="$out/$how"
  done
fi
exit $failed
