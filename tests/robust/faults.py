"""Faults that strike a run: each does one to a run in a `World` and returns what was lost, "" for nothing.

test_reliability.py does each once, `python -m tests.robust.stress faults` many times.
"""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import jobs
from jobs import Job, World, difference, slowly, small_files
from test_trainer import TEXT, identical, saved, temporary

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

Fault = Callable[[World, random.Random], str]
Damage = Callable[[Path, random.Random], None]


def refused(job: Job, *words: str) -> str:
    """What is wrong unless a job ended with one line of error that has these words."""
    status, printed = job.result()
    lines = re.findall(r"^error: (.*)$", printed, re.M)
    if status != 2 or len(lines) != 1 or "Traceback" in printed:
        return f"status {status}: {printed[-800:]}"
    return next((f"{word!r} is not in: {lines[0]}" for word in words if word not in lines[0]), "")


# --- Files ------------------------------------------------------------------------------------


def flip(path: Path, draw: random.Random) -> None:
    """One bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut_short(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size - 1))  # the last byte may only end a line


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def damaged_checkpoint(damage: Damage) -> Fault:
    """The run goes on from the state before the last, and says so."""

    def fault(world: World, draw: random.Random) -> str:
        out = world.stopped()
        before = saved(out)
        damage(out / "ckpt.pt", draw)
        try:  # a bit between the parts of the file stands for nothing
            harmless = identical(checkpoint.read_checkpoint(out / "ckpt.pt"), before)
        except InputError:
            harmless = False
        wrong = world.goes_on(out)
        said = out.with_suffix(".log").read_text()
        fell_back = "going on from ckpt_prev.pt, step 4" in said
        return wrong or ("" if harmless or fell_back else f"not said: {said[:500]}")

    return fault


def damaged_data(damage: Damage, *names: str) -> Fault:
    """One of these files is damaged: the line of error names it."""

    def fault(world: World, draw: random.Random) -> str:
        place, name = world.place(), draw.choice(names)
        shutil.copytree(world.data, place / "data")
        damage(place / "data" / name, draw)
        return refused(Job(world.config(place / "out", dataset=str(place / "data"))), name)

    return fault


def full_disk_in_a_save(world: World, draw: random.Random) -> str:
    out = world.stopped()
    before = (out / "ckpt.pt").read_bytes()
    job = Job(world.config(out, init_from="resume"), before=small_files)
    wrong = refused(job, "ckpt.pt", "--init_from=resume")
    if wrong or temporary(out) or (out / "ckpt.pt").read_bytes() != before:
        return wrong or "ckpt.pt is not what it was"
    return world.goes_on(out)


def full_disk_at_the_start(world: World, draw: random.Random) -> str:
    """With so little room that not even the settings can be written; the run before stays as it was."""
    out = world.stopped()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    wrong = refused(Job(world.config(out), before=jobs.tiny_files), "config.json", "File too large")
    return wrong or ("" if {p.name: p.read_bytes() for p in out.iterdir()} == before else "it changed")


def full_disk_in_the_log(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    job = Job(world.config(out), before=jobs.small_logs)
    return refused(job, "metrics.jsonl", "--init_from=resume") or world.goes_on(out)


def prepare(config: TrainConfig) -> None:
    """A job's work: text to token files, far more than `small_files` allows."""
    text = TEXT * 100
    write_dataset(Path(config.dataset), text, Tokenizer.char(TEXT), val_fraction=0.1, source="a test")


def prepare_languages(config: TrainConfig) -> None:
    """As `prepare`, of two languages: only the second does not fit."""
    jobs.write_languages(Path(config.dataset), TEXT[1:], TEXT * 100)


def full_disk_in_prepare(world: World, draw: random.Random) -> str:
    place = world.place()
    for source, work in ((world.data, prepare), (world.languages, prepare_languages)):
        old, new = place / source.name, place / f"new {source.name}"
        shutil.copytree(source, old)
        before = {p.name: p.read_bytes() for p in old.iterdir()}
        for folder in (old, new):
            config = world.config(place / "out", dataset=str(folder))
            if wrong := refused(Job(config, before=small_files, work=work), "cannot write"):
                return wrong
        if {p.name: p.read_bytes() for p in old.iterdir()} != before or new.exists():
            return "something is left, or gone"
    return ""


# --- Processes --------------------------------------------------------------------------------


def stopped_by(number: signal.Signals) -> Fault:
    def fault(world: World, draw: random.Random) -> str:
        out, step = world.place() / "out", draw.randrange(1, 11)
        job = Job(world.config(out), before=slowly)
        job.wait_for(lambda: f"step {step:>6}/" in job.printed)
        job.send(number)
        status, printed = job.result()
        said = re.search(r"stopped at step (\d+), saved .*--init_from=resume", printed)
        if status != (130 if number == signal.SIGINT else 0) or not said:
            return f"status {status}: {printed[-800:]}"
        if saved(out)["iter_num"] != int(said[1]):
            return f"it says {said[0]}, and saved step {saved(out)['iter_num']}"
        return world.goes_on(out)

    return fault


def one_of_two(number: signal.Signals) -> Fault:
    """One process is killed or stopped: the other ends and says why."""

    def fault(world: World, draw: random.Random) -> str:
        out, rank = world.place() / "out", draw.randrange(2)
        job = Job(world.config(out, timeout_s=3), n=2, before=slowly)
        job.wait_for((out / "ckpt.pt").is_file)
        job.send(number, rank)
        job.ranks[1 - rank].join(30)
        goes_on = job.ranks[1 - rank].is_alive()
        job.kill()
        if goes_on or "error: another process of this job" not in job.printed:
            return f"the other {'goes on' if goes_on else 'does not say so'}: {job.printed[-800:]}"
        return world.goes_on(out, n=2)

    return fault


# --- Memory, places ---------------------------------------------------------------------------


def out_of_memory(world: World, draw: random.Random) -> str:
    out, n = world.place() / "out", 2 * draw.randrange(200_000, 300_000)
    job = Job(world.config(out, batch_size=n), before=jobs.little_memory)
    return refused(
        job, "out of memory", f"--batch_size={n // 2} --gradient_accumulation_steps=4", "--recompute=True"
    )


def odd_place(world: World, draw: random.Random) -> str:
    """A path with spaces and Chinese characters works as any other."""
    place = world.place() / "my runs 我的 模型 'é'"
    shutil.copytree(world.data, place / "数据 1")
    shutil.copytree(world.finished(max_iters=8), place / "out")
    return world.goes_on(place / "out", dataset=str(place / "数据 1"))


def impossible_place(world: World, draw: random.Random) -> str:
    """A name that is too long, a file in place of a folder, a folder where nothing can be made."""
    place = world.place()
    (place / "file").write_text("a file")
    outs = {"long": place / ("x" * 300), "file": place / "file" / "out", "system": Path("/proc/none/out")}
    if os.geteuid():
        (place / "closed").mkdir(mode=0o500)
        outs["closed"] = place / "closed" / "out"
    for name, out in outs.items():
        if wrong := refused(Job(world.config(out), log=place / name), str(out.parent)[:60]):
            return wrong
    return ""


def without_network(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    job = Job(world.config(out, init_from="somebody/nothing"), before=jobs.no_network)
    return refused(job, "somebody/nothing", "cannot be fetched") or ("out is left" if out.exists() else "")


def clock_goes_backwards(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    status, printed = Job(world.config(out), before=jobs.clock_backwards).result()
    return printed[-500:] if status else difference(out, world.finished())


def terminal_closes(world: World, draw: random.Random) -> str:
    """It is resized, then gone: the run has nobody to write to, and ends as if it had."""
    out = world.place() / "out"
    master, terminal = pty.openpty()
    job = Job(world.config(out), before=slowly, log=Path(os.ttyname(terminal)))
    os.close(terminal)
    job.wait_for((out / "ckpt.pt").is_file)
    job.send(signal.SIGWINCH)
    os.close(master)
    if not job.ends_within(60) or job.ranks[0].exitcode:
        job.kill()
        return f"status {job.ranks[0].exitcode}"
    return difference(out, world.finished())


FAULTS: dict[str, Fault] = {
    "a bit flipped in ckpt.pt": damaged_checkpoint(flip),
    "ckpt.pt truncated": damaged_checkpoint(cut_short),
    "ckpt.pt gone": damaged_checkpoint(remove),
    "a bit flipped in a .bin": damaged_data(flip, "train.bin", "val.bin"),
    "a bit flipped in meta.json": damaged_data(flip, "meta.json"),
    "a bit flipped in tokenizer.json": damaged_data(flip, "tokenizer.json"),
    "a file of the data truncated": damaged_data(
        cut_short, "train.bin", "val.bin", "meta.json", "tokenizer.json"
    ),
    "disk full in a save": full_disk_in_a_save,
    "disk full at the start": full_disk_at_the_start,
    "disk full in the log": full_disk_in_the_log,
    "disk full in prepare": full_disk_in_prepare,
    "SIGTERM": stopped_by(signal.SIGTERM),
    "SIGINT": stopped_by(signal.SIGINT),
    "SIGUSR1": stopped_by(signal.SIGUSR1),
    "SIGHUP": stopped_by(signal.SIGHUP),
    "out of memory": out_of_memory,
    "one of two processes dies": one_of_two(signal.SIGKILL),
    "one of two processes hangs": one_of_two(signal.SIGSTOP),
    "spaces and Chinese in paths": odd_place,
    "a folder that cannot be made": impossible_place,
    "no network": without_network,
    "the clock goes backwards": clock_goes_backwards,
    "the terminal is resized, then closed": terminal_closes,
}
