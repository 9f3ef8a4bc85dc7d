"""Small breakages of the code that the tests must find, and the test that finds each.

A mutant is (file under nanobackpack/, old text, new text, test): with the old text, which occurs once,
replaced by the new one, the test must fail.

    python tests/mutants.py             all of them, half a minute each, in a copy of the repository
    python tests/mutants.py 3 17        these
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    test: str


BACKPACK, KERNELS, GENERATE = "model/backpack.py", "model/kernels.py", "model/generate.py"
EDITS, LAYOUTS, SCORING = "model/edits.py", "model/layouts.py", "evaluate/scoring.py"
UNTRUSTED, TEXTS = "safe/untrusted.py", "safe/texts.py"
FILES, RUN = "safe/files.py", "safe/run.py"
ZOO, RELIABILITY = "robust/test_zoo.py::test_nothing_in_the_zoo_does_harm", "robust/test_reliability.py"

MUTANTS = [
    # --- The network ---
    # α scaled by the width of the model, not of a sense
    Mutant(BACKPACK, "1.0 / math.sqrt(D // K)", "1.0 / math.sqrt(D)",
           "test_models.py::test_equals_plain_formula"),
    # attention scaled by the width of the model, not of a head
    Mutant(BACKPACK, "math.sqrt(D // config.n_head)", "math.sqrt(D)", "test_models.py::test_golden"),
    # block i scaled by 1 / (i + 2)
    Mutant(BACKPACK, "self.scale /= index + 1", "self.scale /= index + 2", "test_models.py::test_golden"),
    # nano: senses without the residual
    Mutant(BACKPACK, "(w + u.unsqueeze(-2))", "w", "test_models.py::test_golden"),
    # paper: the embedding's norm not added to it
    Mutant(BACKPACK, "r = self.drop(self.ln_0(r)) + r", "r = self.drop(self.ln_0(r))",
           "test_models.py::test_golden"),
    # dropout shared by all positions of a token
    Mutant(BACKPACK, "unique = each_position(input_ids)", "unique = unique_ids(input_ids, len(E))",
           "test_models.py::test_dropout_distributes_as_in_the_plain_formula"),
    # the path for small vocabularies forgets the dropout of α
    Mutant(BACKPACK, "linear(C, E), unique.where, dropout)", "linear(C, E), unique.where)",
           "test_models.py::test_alpha_dropout_is_unbiased"),
    # logits at other positions than asked for
    Mutant(BACKPACK, "o = o[at]", "o = o[at[0], at[1] - 1]", "test_models.py::test_logits_at_some_positions"),
    # initial residual projections too large
    Mutant(BACKPACK, "math.sqrt(2 * self.config.n_layer)", "math.sqrt(self.config.n_layer)",
           "test_models.py::test_initial_weights"),
    # --- The kernels ---
    # a query sees one key of its future
    Mutant(KERNELS, "device=q.device).triu(1)", "device=q.device).triu(2)",
           "test_kernels.py::test_sense_sum"),
    Mutant(KERNELS, "device=scores.device).triu(1)", "device=scores.device).triu(2)",
           "test_models.py::test_alpha"),
    # senses and tokens in the wrong order
    Mutant(KERNELS, "table = C.transpose(0, 1).reshape(K * U, W)  # sense",
           "table = C.reshape(K * U, W)  # sense", "test_kernels.py::test_sense_sum"),
    # every block of queries drops the same
    Mutant(KERNELS, " + self.queries.start) %", ") %", "test_kernels.py::test_sense_sum_with_dropout"),
    # backward drops something else than forward
    Mutant(KERNELS, "mask = tile.dropout_mask(alpha, dropout, seed)",
           "mask = tile.dropout_mask(alpha, dropout, seed + 1)",
           "test_kernels.py::test_sense_sum_with_dropout"),
    # ignored targets count in the mean
    Mutant(KERNELS, "(real / real.sum())", "(real / len(real))",
           "test_kernels.py::test_linear_cross_entropy"),
    # the gradient of E from the last chunk alone
    Mutant(KERNELS, "new if dEt is None else dEt.add_(new)", "new",
           "test_kernels.py::test_linear_cross_entropy"),
    # --- Generation ---
    # each new token at position 0
    Mutant(GENERATE, "self.positions = slice(start, end)", "self.positions = slice(end - start)",
           "test_generate.py::test_cached_equals_uncached"),
    # the cached table of few tokens in the wrong order
    Mutant(BACKPACK, "linear(C, E).transpose(0, 1).flatten(0, 1)", "linear(C, E).flatten(0, 1)",
           "test_generate.py::test_cached_logits_equal_the_plain_formula"),
    # the sliding window one short
    Mutant(GENERATE, "window = window[:, 1:]", "window = window[:, 2:]",
           "test_generate.py::test_cached_equals_uncached"),
    # a restart keeps one token too many
    Mutant(GENERATE, "size - max(1, size // 2)", "size - max(1, size // 2 + 1)",
           "test_generate.py::test_restart_equals_plain_restart"),
    # a restart cuts rows that do not fill the context yet
    Mutant(GENERATE, "fills = window[:, :1] >= 0", "fills = window[:, 1:2] >= 0",
           "test_generate.py::test_prompts_of_any_lengths_grow_as_alone"),
    # what fills up shorter prompts is seen; their positions begin with it
    Mutant(GENERATE, "(at >= begin) | (row < begin)", "(at >= 0) | (row < begin)",
           "test_generate.py::test_prompts_of_any_lengths_grow_as_alone"),
    Mutant(GENERATE, "(at[start:] - self.begin[:, None])", "(at[start:] - 0 * self.begin[:, None])",
           "test_generate.py::test_prompts_of_any_lengths_grow_as_alone"),
    # and it is a token that they may not have
    Mutant(GENERATE, "return ids.where(ids >= 0, ids[:, -1:])", "return ids.clamp(min=0)",
           "test_generate.py::test_what_fills_up_a_row_brings_in_no_other_token"),
    # topic control counts it in: as text that supports senses, and in how far a token stands from the start
    Mutant(EDITS, ".masked_fill(new_ids < 0, 0)", "", "test_control.py::test_rows_and_samples_do_not_mix"),
    Mutant(EDITS, "(text.ids >= 0).cumsum", "(text.ids >= -1).cumsum",
           "test_control.py::test_rows_and_samples_do_not_mix"),
    # padded ids can be sampled
    Mutant(GENERATE, "choose(with_text(model, logits), ", "choose(logits, ",
           "test_generate.py::test_padded_ids_are_never_sampled"),
    # top_p leaves out the token that reaches it; top_k the last one
    Mutant(GENERATE, "p.cumsum(dim=1) - p >= top_p", "p.cumsum(dim=1) >= top_p",
           "test_generate.py::test_top_p_is_exact"),
    Mutant(GENERATE, "logits < kth", "logits <= kth", "test_generate.py::test_top_k_is_exact"),
    # beams numbered by the whole vocabulary, padding included
    Mutant(GENERATE, "best // V, (best % V)", "best // (V + 1), (best % V)",
           "test_evaluate.py::test_beams_keep_the_best_of_each_step"),
    # a model in use is in eval mode itself, not a twin of it
    Mutant("runtime.py", "twin = copy.copy(model)", "twin = model",
           "test_python.py::test_no_use_changes_the_mode"),
    # --- Edits ---
    # rows inside the word are amplified too
    Mutant(EDITS, "(rows >= start + n - 1)", "(rows >= start)",
           "test_control.py::test_logits_equal_the_definition"),
    # a cached token does not add to the support of the senses before it
    Mutant(EDITS, "a[..., :-1] += _positive", "_ = _positive",
           "test_control.py::test_cached_generation_equals_uncached"),
    # --- Layouts ---
    # copies of a tied tensor are not compared
    Mutant(LAYOUTS, "not torch.equal(left.pop(key), ours[name])", "left.pop(key) is None",
           "test_layouts.py::test_paper_tied_copies_must_agree"),
    # numbers of senses not put in order
    Mutant(LAYOUTS, "outer = (D, K) if inward else (K, D)", "outer = (K, D)", "test_models.py::test_golden"),
    # weights that are no numbers
    Mutant(LAYOUTS, "if not all(map(torch.isfinite, p.aminmax())):", "if p is None:",
           "test_layouts.py::test_own_tensors_refused"),
    # --- Untrusted files, and a run's folder ---
    # any function of any library may be called while a checkpoint is opened
    Mutant(UNTRUSTED, "(_TORCH.fullmatch(argument) or argument in _STORAGES)", "True", ZOO),
    # a dict may have a key that takes forever to hash
    Mutant(UNTRUSTED, "not all(map(_is_key, values[::2]))", "False", ZOO),
    # memory for as many values as a number in the file says
    Mutant(UNTRUSTED, "if slot > position:", "if slot > 1 << 40:", ZOO),
    # parts that lie in each other
    Mutant(UNTRUSTED, "not 0 <= offset - reached <= (24 if parts else 0)", "False", ZOO),
    # two parts of a zip whose names differ in case only
    Mutant(UNTRUSTED, "name.lower() in names", "name in names",
           f"{RELIABILITY}::test_parts_of_a_zip_differ_in_more_than_case"),
    # a tensor goes on beyond its storage
    Mutant(UNTRUSTED, "offset + reach > n", "False",
           "robust/test_zoo.py::test_tensors_lie_within_the_storages_that_an_old_file_names"),
    # one number stands for a whole tensor
    Mutant(UNTRUSTED, "stride < reach", "False", ZOO),
    # lists of lists of lists are followed to their end
    Mutant(UNTRUSTED, "left < 0 or depth > _MAX_DEPTH", "False", ZOO),
    # damaged numbers in a checkpoint are believed
    Mutant(UNTRUSTED, "if checksum != expected:", "if False:",
           f"{RELIABILITY}::test_no_damaged_byte_of_a_checkpoint_is_believed"),
    # tokenizers that make a text 1,000 times longer, or have 10^5 parts
    Mutant(TEXTS, "growth > _MAX_GROWTH or ", "", ZOO),
    Mutant(TEXTS, " or n > _MAX_PARTS", "", ZOO),
    # files without end, or far too long
    Mutant(FILES, "if path.exists() and not path.is_file():", "if False:", ZOO),
    Mutant(FILES, "(n_bytes := path.stat().st_size) > limit", "(n_bytes := path.stat().st_size) < 0", ZOO),
    # a name twice in a JSON object, a number in it that is none
    Mutant(FILES, "len(values := dict(pairs)) < len(pairs)", "len(values := dict(pairs)) < 0", ZOO),
    Mutant(FILES, "not math.isfinite(value := float(number))", "not (value := float(number))", ZOO),
    # a data set names a file outside of its folder
    Mutant(FILES, 'isinstance(name, str) and name == Path(name).name != ".."', "isinstance(name, str)", ZOO),
    # a lock that is another file's second name is emptied
    Mutant(RUN, "or found.st_nlink > 1", "", ZOO),
    # a second run in the same folder
    Mutant(RUN, "fcntl.LOCK_EX |", "fcntl.LOCK_SH |", f"{RELIABILITY}::test_a_folder_has_one_run"),
    # the last signal counts, not the first
    Mutant(RUN, "self.received or number", "number",
           f"{RELIABILITY}::test_the_first_signal_counts_and_a_later_ctrl_c_ends_the_run"),
    # losses of several processes added, not averaged; weights that one of them has spoiled are not noticed
    Mutant("train/parallel.py", "return self.sum(t).div_(self.world_size)", "return self.sum(t)",
           "test_distributed.py::test_every_model"),
    Mutant("train/parallel.py", "dist.all_reduce(highest, dist.ReduceOp.MAX)", "pass",
           "test_distributed.py::test_a_signal_to_one_stops_all_at_the_same_step"),
    # --- Evaluation ---
    # a text is exact if any of its tokens is the likeliest; its first tokens are scored, not its last
    Mutant(SCORING, "bool(e.all())", "bool(e.any())", "test_evaluate.py::test_exact_means_every_token"),
    Mutant(SCORING, "len(x) - len(y), len(x))", "len(y))", "test_evaluate.py::test_score"),
    # the last, shorter window of a stream counts as much as a whole one
    Mutant("evaluate/perplexity.py", "sum(loss * n for loss, n in windows) / tokens",
           "sum(loss for loss, _ in windows) / len(windows)",
           "test_perplexity.py::test_losses_1_and_3_are_a_perplexity_of_7_389"),
    # the last word without its first token
    Mutant("evaluate/lambada.py", "whole[len(context_ids) :]", "whole[len(context_ids) + 1 :]",
           "test_evaluate.py::test_last_words"),
    # ties are right
    Mutant("evaluate/blimp.py", "good > bad for", "good >= bad for", "test_evaluate.py::test_sentence_pairs"),
    # v2 forgets how likely the word itself is; the third guess is not looked at
    Mutant("evaluate/wcpc.py", "[p + score.log_p for", "[score.log_p for",
           "test_evaluate.py::test_word_prediction"),
    Mutant("evaluate/wcpc.py", "found[:3]", "found[:2]", "test_evaluate.py::test_right_words_are_counted"),
    # the greatest cosine for the least
    Mutant("evaluate/lexical_similarity.py", "senses.amin", "senses.amax",
           "test_evaluate.py::test_lexical_similarity"),
    # he likelier than she and she likelier than he cancel; fitted and measured on the same prompts
    Mutant("evaluate/bias.py", "log_ratio.abs()", "log_ratio", "test_control_evaluate.py::test_bias_ratio"),
    Mutant("evaluate/bias.py", "bias_ratio(model, noun.estimation,", "bias_ratio(model, noun.prompts,",
           "test_control_evaluate.py::test_gender_bias"),
    # all texts from one seed
    Mutant("evaluate/topic.py", "seed_of(settings.seed, i)", "settings.seed",
           "test_control_evaluate.py::test_controlled_texts"),
    # a sense asked for is taken as all senses
    Mutant("commands/steer.py", "settings.sense < 0", "settings.sense < 3",
           "test_control_evaluate.py::test_editing_commands"),
]  # fmt: skip


def is_found(mutant: Mutant, copy: Path) -> bool:
    """Whether the test fails for a copy of the repository in which the mutant stands."""
    file = copy / "nanobackpack" / mutant.file
    whole = file.read_text(encoding="utf-8")
    assert whole.count(mutant.old) == 1, f"{mutant.file} has {mutant.old!r} {whole.count(mutant.old)} times"
    file.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", f"tests/{mutant.test}"]
    status = subprocess.run(command, cwd=copy, env=env, capture_output=True).returncode
    file.write_text(whole, encoding="utf-8")
    assert status in (0, 1), f"{mutant.test} cannot be run"
    return status == 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for part in ("nanobackpack", "tests", "config", "experiments"):
            shutil.copytree(Path(__file__).resolve().parents[1] / part, Path(folder) / part)
        shutil.copy(Path(__file__).resolve().parents[1] / "pyproject.toml", folder)
        chosen = [int(i) for i in sys.argv[1:]] or range(len(MUTANTS))
        missed = 0
        for i in chosen:
            if not is_found(MUTANTS[i], Path(folder)):
                missed += 1
                print(f"mutant {i} is not found: {MUTANTS[i]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mutants are found")
    sys.exit(bool(missed))
