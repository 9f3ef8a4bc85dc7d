"""Runs that are killed, hindered, or run for long; and the parts that make them survive it.

The faults are in faults.py, the parts that take hours in stress.py: here each once, in small.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from faults import FAULTS
from jobs import Job, World
from stress import kill, load, save
from test_prepare import corpus_of
from test_trainer import TEXT, identical, learned, records, saved, tiny, without_timings, write_foxes

from nanobackpack import __version__, cli, load_model, program
from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.runtime import seed_of
from nanobackpack.safe import files
from nanobackpack.safe.run import StopSignals, less_memory, lock_folder, put_aside, within_memory
from nanobackpack.safe.untrusted import find_parts
from nanobackpack.text import data
from nanobackpack.text.corpus import from_files
from nanobackpack.text.data import Mixture, TokenData
from nanobackpack.text.meta import Meta
from nanobackpack.text.prepare import write_tokens
from nanobackpack.text.splits import deal_shards
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.checkpoint import BackgroundWriter, last_good_checkpoint
from nanobackpack.train.log import Log
from nanobackpack.train.trainer import BATCH, Trainer, train

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked, and hindered by Linux")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_nothing(world: World, name: str) -> None:
    assert FAULTS[name](world, random.Random(name)) == ""


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("only", ["accumulation, dropout", "several languages", "two processes"])
def test_killed_three_times(only: str) -> None:
    (row,) = kill(3, seed=1, only=only, steps=24).values()
    assert (row["killed"], row["survived"], row["lost"]) == (3, 3, 0)


@LINUX
@pytest.mark.slow
def test_nothing_grows() -> None:
    rows = load(500)
    assert rows["steps"]["done"] == 495
    for row in rows.values():
        assert row["handles grown"] <= 0
        assert row["bytes grown per 1,000"] < 3e6  # a leak of a batch or a state in each step is more


def test_a_save_is_timed(tmp_path: Path) -> None:
    (row,) = save(1, 1, str(tmp_path)).values()
    assert (row["saves"], row["failed"]) == (1, 0)
    assert list(tmp_path.iterdir()) == []


def train_with_own_seed(config: TrainConfig) -> int:
    return train(dataclasses.replace(config, seed=int(os.environ["RANK"])))


@LINUX
@pytest.mark.slow
def test_processes_that_differ_end_before_the_first_step(world: World) -> None:
    out = world.place() / "out"
    job = Job(world.config(out), n=2, work=train_with_own_seed)
    assert job.ends_within(60)
    assert [process.exitcode for process in job.ranks] == [2, 2]
    assert job.printed.count("RANK 1 differs from the others (theirs → its own: seed 0 → 1)") == 2
    assert not out.exists()


def test_processes_of_one_number_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two containers each may be process 1."""
    path = tmp_path / "train.bin"
    with files.replacing(path) as first:
        first.write(b"first")
        monkeypatch.setattr(files, "_OWN", "another", raising=False)
        with files.replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@LINUX
def test_a_file_of_the_kernel_is_empty() -> None:
    """Some never end, and all of them say that they have no bytes."""
    assert files.read_bytes(Path("/proc/self/maps"), 100) == b""
    assert "".join(piece.text for piece in from_files(["/proc/self/maps"]).read()) == ""
    with pytest.raises(InputError, match="is empty"):
        files.read_text(Path("/proc/self/maps"))


def test_an_out_dir_that_torch_cannot_open_is_refused() -> None:
    with pytest.raises(InputError, match="no UTF-8"):
        TrainConfig(out_dir=os.fsdecode(b"out-\xff"))


# --- States on disk ---------------------------------------------------------------------------


@pytest.fixture
def foxes(tmp_path: Path) -> Path:
    return write_foxes(tmp_path / "foxes")


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob(pattern)}


def steps(folder: Path) -> dict[str, int]:
    return {p.name: saved(folder, p.name)["iter_num"] for p in sorted(folder.glob("*.pt"))}


def save_steps(folder: Path, keep_last: int, numbers: range, resumed: Path | None = None) -> None:
    with BackgroundWriter(folder, keep_last, resumed) as saver:
        for step in numbers:
            saver.save("ckpt.pt", {"iter_num": step})


@pytest.mark.parametrize(
    ("keep_last", "kept"),
    [
        (1, {"ckpt.pt": 4}),
        (2, {"ckpt.pt": 4, "ckpt_prev.pt": 3}),
        (9, {"ckpt.pt": 4, "ckpt_prev.pt": 3, "ckpt_prev2.pt": 2, "ckpt_prev3.pt": 1}),
    ],
)
def test_the_last_states_are_kept(tmp_path: Path, keep_last: int, kept: dict[str, int]) -> None:
    save_steps(tmp_path, keep_last, range(1, 5))
    assert steps(tmp_path) == kept
    save_steps(tmp_path, 2, range(5, 6), resumed=tmp_path / "ckpt.pt")
    assert steps(tmp_path) == {"ckpt.pt": 5, "ckpt_prev.pt": 4}


def test_without_links_the_state_before_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*names: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "link", no_links)
    save_steps(tmp_path, 2, range(1, 4))
    assert steps(tmp_path) == {"ckpt.pt": 3, "ckpt_prev.pt": 2}


def test_a_damaged_state_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, range(1, 3))
    (tmp_path / "ckpt.pt").write_bytes(b"damaged")
    state, source, note = last_good_checkpoint(tmp_path)
    assert (state["iter_num"], source.name) == (1, "ckpt_prev.pt")
    assert "ckpt.pt" in note
    assert note.endswith("going on from ckpt_prev.pt, step 1")
    assert "\n" not in note
    save_steps(tmp_path, 2, range(2, 3), resumed=source)
    assert steps(tmp_path) == {"ckpt.pt": 2, "ckpt_prev.pt": 1}
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"ckpt\.pt"):
        last_good_checkpoint(tmp_path)


class Dies(Trainer):
    """Ends at step 1 as if it were killed: without another word on the disk."""

    def train_step(self, lr: float) -> torch.Tensor:
        if self.step == 1:
            raise ZeroDivisionError
        return super().train_step(lr)


RUN = {"ckpt.pt", "ckpt_prev.pt", "ckpt_4.pt", "best.pt", "config.json", "metrics.jsonl", "loss.png"}


def test_a_new_run_moves_the_one_before_aside(
    foxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, older = tmp_path / "my out", tmp_path / "my out" / "older-8"
    train(tiny(foxes, out, max_iters=4, backup_checkpoint_step=4))
    (out / "older-7").mkdir()  # of before
    (out / "baked.pt").write_bytes(b"of the user")
    before = contents(out, "*.*")
    assert before.keys() == RUN | {"baked.pt"}
    # One that ends before its first save: the run before is whole, and nothing takes it for the new one.
    with pytest.raises(ZeroDivisionError):
        Dies(tiny(foxes, out, seed=9)).run()
    moved = contents(older)
    assert moved == {name: before[name] for name in RUN}
    said = capsys.readouterr().out
    assert f"the run that was in {out} is now in {older}; go on with it by" in said
    assert shlex.quote(f"--out_dir={older}") in said
    with pytest.raises(InputError, match=r"no checkpoint .*, such as .*older-\d of an earlier run"):
        train(tiny(foxes, out, seed=9, init_from="resume"))
    with pytest.raises(InputError, match=r"no model in .* \(ckpt\.pt, or config\.json"):
        load_model(out)
    # The next one moves what that one has logged, and no checkpoint; then one is replaced.
    train(tiny(foxes, out, seed=9))
    assert contents(out / "older-9").keys() == {"config.json", "metrics.jsonl", "loss.png"}
    assert "go on with it" not in capsys.readouterr().out
    train(tiny(foxes, out, max_iters=1, eval_interval=9, overwrite=True))
    assert contents(out, "*.*").keys() == RUN - {"ckpt_prev.pt", "ckpt_4.pt"} | {"baked.pt"}
    assert not (out / "older-10").exists()
    # Nothing is kept of one that logged nothing.
    for _ in range(2):
        Log(tiny(foxes, tmp_path / "empty"), 0).close()
    assert not (tmp_path / "empty" / "older-1").exists()
    (tmp_path / "empty" / "metrics.jsonl").unlink()  # as if config.json were of another program
    assert "older-1" in put_aside(tmp_path / "empty", overwrite=False)
    # The first one goes on where it is, as if it had never been moved.
    assert contents(older) == moved
    train(tiny(foxes, older, max_iters=6, init_from="resume"))
    train(tiny(foxes, tmp_path / "whole", max_iters=6))
    assert identical(learned(older), learned(tmp_path / "whole"))
    assert without_timings(records(older)) == without_timings(records(tmp_path / "whole"))


@pytest.mark.parametrize("moves", range(len(RUN) + 1))
def test_a_move_that_is_cut_short_is_ended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    for name in RUN:
        (tmp_path / name).write_text(name)
    whole, replace, done = contents(tmp_path), Path.replace, iter(range(moves))

    def killed(path: Path, target: Path) -> Path:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            put_aside(tmp_path, overwrite=False)
    here, there = contents(tmp_path, "*.*"), contents(tmp_path / "older-unfinished")
    assert here | there == whole
    assert "ckpt.pt" in here or "ckpt_prev.pt" in there  # none is left that a run could go on from
    put_aside(tmp_path, overwrite=False)
    assert contents(tmp_path / "older-1") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["older-1"]


def test_a_checkpoint_of_another_run_is_refused(foxes: Path, tmp_path: Path) -> None:
    """Earlier versions left it until the new run saved."""
    out = tmp_path / "out"
    train(tiny(foxes, out, max_iters=2))
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"run": "another"}))
    for call in (lambda: train(tiny(foxes, out, init_from="resume")), lambda: load_model(out)):
        with pytest.raises(InputError, match=r"is of an earlier run.*--init_from=scratch") as error:
            call()
        assert "\n" not in str(error.value)
    load_model(out / "best.pt")  # asked for by its name
    for name in ("config.json", "metrics.jsonl"):
        (out / name).unlink()
    assert train(tiny(foxes, out, max_iters=3, init_from="resume")) == 0


def test_a_state_from_before_there_were_runs_goes_on(foxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(tiny(foxes, out, max_iters=4))
    state = saved(out)
    del state["run"]
    torch.save(state, out / "ckpt.pt")
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "run"}))
    for steps in (6, 8):
        assert train(tiny(foxes, out, max_iters=steps, init_from="resume")) == 0
    assert saved(out)["run"] is None
    assert "run" not in json.loads((out / "config.json").read_text())


def test_an_evaluation_leaves_the_states_of_a_folder_usable(foxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(tiny(foxes, out, max_iters=4))
    before = contents(out, "*.*[!g]")  # the curve is drawn again
    train(tiny(foxes, out, eval_only=True, seed=9, overwrite=True))
    assert contents(out, "*.*[!g]") == before
    load_model(out)
    assert train(tiny(foxes, out, max_iters=6, init_from="resume")) == 0
    assert json.loads((out / "config.json").read_text())["run"] == saved(out)["run"]


def test_a_state_is_that_of_its_moment(tmp_path: Path) -> None:
    """What training changes meanwhile is not what is written."""
    t = torch.zeros(1_000_000)
    with BackgroundWriter(tmp_path, 1, None) as saver:
        saver.save("ckpt.pt", {"model": {"t": t}, "groups": [{"t": t}]})
        t.fill_(1)
    state = saved(tmp_path)
    assert not state["model"]["t"].any()
    assert not state["groups"][0]["t"].any()


def test_training_goes_on_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, write = threading.Event(), threading.Event(), checkpoint.save_checkpoint

    def blocked(*args: Any) -> None:
        begun.set()
        assert go.wait(20)
        write(*args)

    monkeypatch.setattr(checkpoint, "save_checkpoint", blocked)
    with BackgroundWriter(tmp_path, 1, None) as saver:
        saver.save("ckpt.pt", {"iter_num": 1})  # returns, though nothing can be written yet
        assert begun.wait(20)
        saver.check()
        assert list(tmp_path.iterdir()) == []
        go.set()
        saver.wait()
    assert steps(tmp_path) == {"ckpt.pt": 1}


def test_a_save_that_fails_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").mkdir()  # nothing can be renamed to that
    saver = BackgroundWriter(tmp_path, 1, None)
    saver.save("ckpt.pt", {"iter_num": 1})
    with pytest.raises(InputError, match=r"cannot write .*ckpt\.pt \(Is a directory\)"):
        saver.wait()
    saver.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_no_damaged_byte_of_a_checkpoint_is_believed(tmp_path: Path) -> None:
    path, draw = tmp_path / "ckpt.pt", random.Random(0)
    model = tiny_model()
    state = {"model": model.state_dict(), "iter_num": 3, "tokenizer": "a text"}
    checkpoint.save_checkpoint(path, state)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            found = checkpoint.read_checkpoint(path)
        except InputError:
            refused += 1
        else:
            assert identical(found, {"format": checkpoint.FORMAT, "version": __version__, **state})
    assert refused > 150  # the rest are bytes between the parts


@pytest.mark.parametrize("other", ["x/data/b", "x/data/A"])
def test_parts_of_a_zip_differ_in_more_than_case(other: str) -> None:
    """torch looks parts up without it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data/a", b"one")
        archive.writestr(other, b"another")
    size = len(file.getvalue())
    if other.endswith("b"):
        assert [n for _, n, _ in find_parts(file, size).values()] == [3, 7]
    else:
        with pytest.raises(InputError, match="odd name, or that of another"):
            find_parts(file, size)


# --- The lock ---------------------------------------------------------------------------------


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with lock_folder(folder):
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on "), lock_folder(folder):
            pass
        (folder / "ckpt.pt").touch()
    (folder / "run.lock").write_text("what a killed process left")
    with lock_folder(folder):
        assert json.loads((folder / "run.lock").read_text())["pid"] == os.getpid()
    assert [p.name for p in folder.iterdir()] == ["ckpt.pt"]


def test_a_folder_made_for_nothing_goes_away(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "deep" / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()  # but not one that was there
    with lock_folder(tmp_path / "own"):
        pass
    assert (tmp_path / "own").is_dir()


# --- Signals ----------------------------------------------------------------------------------


def test_the_first_signal_counts_and_a_later_ctrl_c_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with StopSignals(alone=False) as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):  # from the terminal, and from torchrun
            signal.raise_signal(number)
        assert stop.received == signal.SIGTERM
    monkeypatch.setattr(program, "_heard_s", -program.QUICK_S)
    with StopSignals() as stop:
        for _ in range(5):  # in quick succession they are one
            signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        monkeypatch.setattr(program, "_heard_s", program._heard_s - program.QUICK_S)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == 0
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in before} == before


# --- Data -------------------------------------------------------------------------------------


def reverse(path: Path) -> None:
    """Put the ids of a file in another order."""
    np.fromfile(path, "<u2")[::-1].tofile(path)


def edit(folder: Path, changes: dict[str, Any], *without: str) -> None:
    values = json.loads((folder / "meta.json").read_text())
    kept = {k: v for k, v in values.items() if k not in without}
    (folder / "meta.json").write_text(json.dumps(kept | changes))


def test_meta_json_is_sealed(foxes: Path) -> None:
    meta = Meta.load(foxes / "meta.json")
    edit(foxes, {"source": "another"})
    with pytest.raises(InputError, match=r'meta\.json is damaged .*take its "checksum" out'):
        Meta.load(foxes / "meta.json")
    edit(foxes, {"source": meta.source}, "languages")  # in another order and layout, without a default
    assert Meta.load(foxes / "meta.json") == meta
    edit(foxes, {"source": "another"}, "checksum")
    assert Meta.load(foxes / "meta.json").source == "another"


def test_data_without_sums_is_taken(foxes: Path, tmp_path: Path) -> None:
    edit(foxes, {"sha256": {}}, "checksum")
    assert TokenData(foxes).verify_files() == []
    assert train(tiny(foxes, tmp_path / "out", max_iters=2)) == 0


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_content_that_makes_sense_is_not_believed(foxes: Path, tmp_path: Path, name: str) -> None:
    path = foxes / name
    if name == "tokenizer.json":  # the same tokenizer, in another layout
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    else:
        reverse(path)
    with pytest.raises(InputError, match=rf"{name} is damaged: its sha256") as error:
        train(tiny(foxes, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_of_the_data_are_not_looked_at(foxes: Path, tmp_path: Path) -> None:
    for folder in ("endless", "waiting", "old"):
        (foxes / folder).mkdir()
    (foxes / "endless" / "train.bin").symlink_to("/dev/zero")
    os.mkfifo(foxes / "waiting" / "train.bin")
    (foxes / "old" / "train.bin").write_bytes(b"of another text")
    os.mkfifo(foxes / "evaluation_.bin")
    assert TokenData(foxes).verify_files() == []
    assert train(tiny(foxes, tmp_path / "out", max_iters=1)) == 0


def test_every_language_is_looked_at(tmp_path: Path) -> None:
    languages = ("de", "fr")
    corpora = {f"{n}/{n}_": corpus_of(TEXT.splitlines()) for n in languages}
    write_tokens(
        tmp_path, corpora, Tokenizer.char(TEXT), deal_shards(3), add_bos_eos=False, languages=languages
    )
    assert Mixture(tmp_path).verify_files() == []
    path = tmp_path / "fr" / "fr_2.bin"  # the one held out
    reverse(path)
    with pytest.raises(InputError, match=r"fr_2\.bin is damaged"):
        Mixture(tmp_path).verify_files()


def test_files_too_large_are_left_out_and_named(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "_MAX_SUMMED", (foxes / "train.bin").stat().st_size)
    assert [p.name for p in TokenData(foxes).verify_files()] == ["val.bin"]
    reverse(foxes / "val.bin")
    train(tiny(foxes, tmp_path / "out", max_iters=1))
    assert "1 file of data too large to be checked" in capsys.readouterr().out


# --- Going on with other settings -------------------------------------------------------------


def test_log_and_eval_settings_change_nothing(foxes: Path, tmp_path: Path) -> None:
    out, hard = tmp_path / "out", {"max_iters": 9, "dropout": 0.2, "gradient_accumulation_steps": 2}
    train(tiny(foxes, tmp_path / "whole", **hard))
    train(tiny(foxes, out, **hard | {"max_iters": 4}))
    other = {"eval_interval": 3, "eval_iters": 1, "log_interval": 2}
    other |= {"backup_checkpoint_step": 1, "keep_last": 4}
    train(tiny(foxes, out, **hard, **other, init_from="resume"))
    ours, whole = learned(out), learned(tmp_path / "whole")
    assert identical(ours["model"], whole["model"])
    assert identical(ours["optimizer"], whole["optimizer"])
    logged = [r["step"] for r in records(out) if "train_loss" in r]
    assert logged == [1, 2, 3, 4, 6, 8]


def test_new_settings_are_used_and_listed(
    foxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(foxes, tmp_path / "out", max_iters=4))
    before = saved(tmp_path / "out")
    new = {"dropout": 0.1, "batch_size": 3, "learning_rate": 2e-2, "block_size": 6, "weight_decay": 0.5}
    capsys.readouterr()
    train(tiny(foxes, tmp_path / "out", max_iters=4, **new, init_from="resume"))
    (line,) = [n for n in capsys.readouterr().out.splitlines() if n.startswith("settings that are new")]
    for text in (
        "dropout 0.0 → 0.1", "batch_size 4 → 3", "learning_rate 0.01 → 0.02", "block_size 8 → 6",
        "weight_decay 0.1 → 0.5",
    ):  # fmt: skip
        assert text in line
    assert line.count("→") == len(new)
    trainer = Trainer(tiny(foxes, tmp_path / "out", max_iters=6, **new, init_from="resume"))
    assert trainer.step == 4
    assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [0.5, 0.0]
    positions, name = trainer.model.context.wpe.weight, "context.wpe.weight"
    assert torch.equal(positions, before["model"][name][:6])
    assert trainer.optimizer.state[positions]["exp_avg"].shape == positions.shape
    trainer.run()
    settings = saved(tmp_path / "out")["model_args"]
    assert (settings["block_size"], settings["dropout"]) == (6, 0.1)


def test_another_text_or_optimizer_is_refused(foxes: Path, tmp_path: Path) -> None:
    train(tiny(foxes, tmp_path / "out", max_iters=2))
    before = contents(tmp_path / "out")
    backwards = write_foxes(tmp_path / "backwards", TEXT[::-1])
    with pytest.raises(InputError, match=r"train\.bin sha256 \w+ → sha256 \w+, val\.bin ") as error:
        train(tiny(backwards, tmp_path / "out", max_iters=3, init_from="resume"))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="optimizer adamw → muon"):
        train(tiny(foxes, tmp_path / "out", max_iters=3, optimizer="muon", init_from="resume"))
    assert contents(tmp_path / "out") == before
    shutil.move(foxes, tmp_path / "moved")  # the same text elsewhere is the same
    assert train(tiny(tmp_path / "moved", tmp_path / "out", max_iters=3, init_from="resume")) == 0


# --- What a failed run says -------------------------------------------------------------------


def test_the_command_in_bad_step_json_comes_to_the_same_step(foxes: Path, tmp_path: Path) -> None:
    out = tmp_path / "my out"
    train(tiny(foxes, out, max_iters=4))
    changes = {"max_iters": 99, "learning_rate": 1e30, "decay_lr": False, "grad_clip": 0.0}
    wild = tiny(foxes, out, **changes, init_from="resume")
    with pytest.raises(InputError, match=r"bad_step\.json") as first:
        train(wild)
    report = json.loads((out / "bad_step.json").read_text())
    program, verb, *flags = shlex.split(report["command"])
    assert (program, verb) == ("nanobackpack", "train")
    assert report["learning_rate"] == 1e30
    assert f"step {report['step']}" in str(first.value)
    seed = seed_of(wild.seed, BATCH)
    x, y = TokenData(foxes).shuffled("train", report["step"] * 4, 4, 8, seed)
    assert report["batches"] == [{"inputs": x.tolist(), "targets": y.tolist()}]
    with pytest.raises(InputError) as again:
        train(cli.parse(TrainConfig, flags))
    assert str(again.value).split(";")[0] == str(first.value).split(";")[0]


@pytest.mark.parametrize(
    ("batch_size", "n_micro", "words"),
    [
        (12, 5, "--batch_size=6 --gradient_accumulation_steps=10, which are 60 sequences"),
        (9, 1, "--batch_size=3 --gradient_accumulation_steps=3, which are 9 sequences"),
        (7, 2, "--batch_size=1 --gradient_accumulation_steps=14, which are 14 sequences"),
        (10**15 + 37, 1, "--batch_size=1 --gradient_accumulation_steps=1000000000000037, "),  # a prime
        (1, 3, "take --recompute=True, or"),
    ],
)
def test_less_memory_keeps_the_product(batch_size: int, n_micro: int, words: str) -> None:
    config = TrainConfig(batch_size=batch_size, gradient_accumulation_steps=n_micro)
    assert words in less_memory(config)


def test_only_a_lack_of_memory_is_explained_by_it() -> None:
    with pytest.raises(InputError, match="out of memory"), within_memory(TrainConfig()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(InputError, match="out of memory"), within_memory(TrainConfig()):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="a bug"), within_memory(TrainConfig()):
        raise RuntimeError("a bug")


def test_a_run_goes_on_when_nobody_reads_it(foxes: Path, tmp_path: Path) -> None:
    """As `python train.py ... | head -1`, but without starting one."""
    config = tiny(foxes, tmp_path / "out", max_iters=3)
    trainer = Trainer(config)
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert trainer.run() == 0
    assert [r["step"] for r in without_timings(records(tmp_path / "out")) if "train_loss" in r] == [1, 2, 3]
