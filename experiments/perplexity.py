"""The perplexity of a model on a held-out stream, each token predicted once.

python experiments/perplexity.py --out_dir=out-shakespeare-char
python experiments/perplexity.py --init_from=gpt2 --dataset=openwebtext --json=gpt2.json
python experiments/perplexity.py --out_dir=clue_small --dataset=data/clue_small/evaluation.bin
python experiments/perplexity.py --out_dir=out-shakespeare-char --edits=edit.safetensors
"""

from nanobackpack import cli, config
from nanobackpack.evaluate import perplexity

if __name__ == "__main__":
    cli.run(perplexity.report, config.PerplexityConfig)
