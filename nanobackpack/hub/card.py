"""The README.md of an exported model: what it is, what its senses say, how to open it."""

from __future__ import annotations

from pathlib import Path

from nanobackpack.analysis.senses import Senses
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.train.checkpoint import LAST, checkpoint_in, read_checkpoint, run_settings
from nanobackpack.train.log import read_metrics

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [{tags}]
---
# {name}

{kind} of {size:,} parameters ({shape}), made with nanobackpack.

* Data: {data}
* Training: {training}{edited}
* **Licence: none yet.** Whoever publishes this model chooses one that its data allow, and enters it above as
  `license:`.

{senses}## How to open it

{opening}
In nanobackpack, to read and steer it:

    import nanobackpack as nb
    model = nb.load_model("{name}")

It learned from texts of up to {block_size} tokens, and takes none that is longer.

## Citation

{citation}
"""
OPENING = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
    tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
    ids = tokenizer({start!r}, return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_length={length}, do_sample=True)[0]))
"""
NO_TOKENIZER = """\
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
    ids = torch.tensor([[1, 2, 3]])  # no tokenizer goes with this model: the ids of your text
    print(model.generate(ids, max_length={length}, do_sample=True)[0])
"""
EDITED = """
* **Steered:** the edits of its senses in {edits} are baked in. The loss is that of the model before."""
OTHERS = {
    "backpack-gpt2": """\
It is in the layout of the Backpack paper's class for transformers 4. Open it with
`attn_implementation="eager"`: with any other that class may leave out a scale, without a word.
""",
    "nanobackpacklm": "It is a checkpoint for nanoBackpackLM: `python sample.py --out_dir=FOLDER` there.\n",
}
BACKPACK = """\
    @inproceedings{hewitt2023backpack,
      title = {Backpack Language Models},
      author = {Hewitt, John and Thickstun, John and Manning, Christopher D. and Liang, Percy},
      booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
      year = {2023},
      url = {https://arxiv.org/abs/2305.16765}
    }"""
GPT = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2)."


def card(model: LanguageModel, run: Path, name: str, layout: str = "transformers", edits: str = "") -> str:
    """Write the card of a model under the name it will have.

    `run`: where it came from, a folder or a checkpoint; `edits`: the file of edits that were baked in.
    """
    folder = run.parent if run.is_file() else run
    c, backpack, words = model.config, isinstance(model, BackpackLM), typical_words(model)
    shape = f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, {c.n_token:,} tokens"
    trust = ", trust_remote_code=True" if backpack else ""  # the code that goes with it
    start = words[0].strip() if words else "\n"
    opening = (OPENING if model.tokenizer else NO_TOKENIZER).format(
        name=name, trust=trust, start=start, length=min(40, c.block_size)
    )
    return CARD.format(
        name=name,
        tags="backpack, interpretability" if backpack else "gpt2",
        kind="A [Backpack language model](https://arxiv.org/abs/2305.16765)" if backpack else "A GPT",
        size=model.num_params(),
        shape=f"{shape}, {c.n_sense_vector} senses a token" if backpack else shape,
        data=run_settings(folder).get("dataset", "not known"),
        training=last_loss(folder, checkpoint_in(run)),
        edited=EDITED.format(edits=Path(edits).name) if edits else "",
        senses=senses_of(model, words) if backpack and words else "",
        opening=opening if layout == "transformers" else OTHERS[layout],
        block_size=c.block_size,
        citation=BACKPACK if backpack else GPT,
    )


def typical_words(model: LanguageModel, n: int = 5) -> list[str]:
    """Choose tokens that are words: of the frequent ones, long ones first."""
    tokenizer, counts = model.tokenizer, model.token_counts
    if tokenizer is None:
        return []
    # Where no counts are known: BPE and WordPiece number their tokens from the frequent to the rare.
    order = range(tokenizer.vocab_size) if counts is None else counts.argsort(descending=True).tolist()
    words = [word for i in order if (word := tokenizer.token(i)).strip().isalpha()][:500]
    return sorted(words, key=lambda word: -min(len(word.strip()), 4))[:n]


def last_loss(folder: Path, file: Path) -> str:
    """The last loss in a run's log, as it was when the checkpoint `file` was written."""
    older = file.is_file() and file.name != LAST
    end = read_checkpoint(file).get("iter_num") if older else None
    for record in reversed(read_metrics(folder / "metrics.jsonl")):
        loss = record.get("val_loss_full", record.get("val_loss"))
        if isinstance(loss, float) and (end is None or record["step"] <= end):
            return f"{record['step']:,} steps, then a loss of {loss:.4f} nats a token on the held-out text"
    return "not known"


def senses_of(model: LanguageModel, words: list[str]) -> str:
    """What the senses of some words say, as text that no reader takes for markup."""
    senses = Senses(model)
    lines = [line for word in words for line in senses.sense_projection(word, k=6).table().splitlines()]
    return "What each sense of a word predicts most:\n\n" + "".join(f"    {line}\n" for line in lines) + "\n"
