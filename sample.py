"""Sample text from a trained model.

python sample.py --out_dir=out-shakespeare-char
python sample.py --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=5
python sample.py --help
"""

from nanobackpack import cli, config
from nanobackpack.commands import sample

if __name__ == "__main__":
    cli.run(sample.sample, config.SampleConfig)
