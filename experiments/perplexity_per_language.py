"""The perplexity of a model on each language of a mixture, and on all of them.

python experiments/perplexity_per_language.py --out_dir=backpack_xlm
python experiments/perplexity_per_language.py --out_dir=backpack_xlm --dataset=common_crawl --json=xlm.json
"""

from nanobackpack import cli, config
from nanobackpack.evaluate import perplexity


def main(settings: config.PerplexityConfig) -> None:
    perplexity.report(settings, each_part=True)


if __name__ == "__main__":
    cli.run(main, config.PerplexityConfig)
