"""Faults that strike a run: each does one to a run in a `World` and returns what was lost, "" for nothing.

test_reliability.py does each once, `python -m tests.robust.stress faults` many times.
"""

from __future__ import annotations

import json
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
from nanobackpack.text.meta import Meta
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

Fault = Callable[[World, random.Random], str]


def refused(job: Job, *words: str) -> str:
    """What is wrong unless a job ended with one line of error that has these words."""
    status, printed = job.result()
    lines = re.findall(r"^error: (.*)$", printed, re.M)
    if status != 2 or len(lines) != 1 or "Traceback" in printed:
        return f"status {status}: {printed[-800:]}"
    return next((f"{word!r} is not in: {lines[0]}" for word in words if word not in lines[0]), "")


def flip(path: Path, draw: random.Random) -> None:
    """One bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


# --- Files ------------------------------------------------------------------------------------


def flipped_checkpoint(world: World, draw: random.Random) -> str:
    """Of a bit that stands for nothing, between the parts of the file, nothing need be noticed."""
    out = world.stopped()
    before = saved(out)
    flip(out / "ckpt.pt", draw)
    try:
        harmless = identical(checkpoint.read_checkpoint(out / "ckpt.pt"), before)
    except InputError:
        harmless = False
    return world.goes_on(out) if harmless else _falls_back(world, out)


def truncated_checkpoint(world: World, draw: random.Random) -> str:
    out = world.stopped()
    os.truncate(out / "ckpt.pt", draw.randrange((out / "ckpt.pt").stat().st_size))
    return _falls_back(world, out)


def missing_checkpoint(world: World, draw: random.Random) -> str:
    out = world.stopped()
    (out / "ckpt.pt").unlink()
    return _falls_back(world, out)


def _falls_back(world: World, out: Path) -> str:
    """Goes on from the state before the last, and says so."""
    wrong = world.goes_on(out)
    said = out.with_suffix(".log").read_text()
    return wrong or ("" if "going on from ckpt_prev.pt, step 4" in said else f"not said: {said[:500]}")


def _damaged_data(world: World, name: str, damage: Callable[[Path], None]) -> str:
    place = world.place()
    shutil.copytree(world.data, place / "data")
    damage(place / "data" / name)
    return refused(Job(world.config(place / "out", dataset=str(place / "data"))), name)


def flipped_data(world: World, draw: random.Random) -> str:
    return _damaged_data(world, draw.choice(["train.bin", "val.bin"]), lambda path: flip(path, draw))


def flipped_meta(world: World, draw: random.Random) -> str:
    def damage(path: Path) -> None:
        before = Meta.load(path)
        content = path.read_bytes()
        while True:  # a bit that changes a space into another is no damage
            flip(path, draw)
            try:
                if Meta.load(path) != before or b'"checksum"' not in path.read_bytes():
                    return
            except ValueError:
                return
            path.write_bytes(content)

    return _damaged_data(world, "meta.json", damage)


def flipped_tokenizer(world: World, draw: random.Random) -> str:
    return _damaged_data(world, "tokenizer.json", lambda path: flip(path, draw))


def truncated_data(world: World, draw: random.Random) -> str:
    name = draw.choice(["train.bin", "val.bin", "meta.json", "tokenizer.json"])
    return _damaged_data(world, name, lambda path: os.truncate(path, draw.randrange(path.stat().st_size)))


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
    out, changes = world.place() / "out", {"max_iters": 400, "eval_interval": 100}
    job = Job(world.config(out, **changes), before=jobs.small_logs)
    if wrong := refused(job, "metrics.jsonl", "--init_from=resume"):
        return wrong
    return world.goes_on(out, **changes)


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


def second_run(world: World, draw: random.Random) -> str:
    """The second is refused; when the first is killed, its lock is no obstacle."""
    out = world.place() / "out"
    first = Job(world.config(out), before=slowly)
    first.wait_for((out / "ckpt.pt").is_file)
    second = Job(world.config(out, init_from="resume"), log=out.with_suffix(".second"))
    wrong = refused(second, f"in use by process {first.ranks[0].pid}")
    first.kill()
    return wrong or world.goes_on(out)


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


def one_of_two_dies(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    job = Job(world.config(out), n=2, before=slowly)
    job.wait_for((out / "ckpt.pt").is_file)
    job.kill(draw.randrange(2))
    if not job.ends_within(30):
        job.kill()
        return "the other goes on"
    if "error: another process of this job ended" not in job.printed:
        return f"not said: {job.printed[-800:]}"
    return world.goes_on(out, n=2)


def one_of_two_hangs(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    job = Job(world.config(out, timeout_s=3), n=2, before=slowly)
    job.wait_for((out / "ckpt.pt").is_file)
    stuck = draw.randrange(2)
    job.send(signal.SIGSTOP, stuck)
    job.ranks[1 - stuck].join(30)
    hangs = job.ranks[1 - stuck].is_alive()
    job.kill()
    if hangs or "error: another process of this job" not in job.printed:
        return f"the other {'hangs too' if hangs else 'does not say so'}: {job.printed[-800:]}"
    return world.goes_on(out, n=2)


# --- Numbers, memory, places ------------------------------------------------------------------


def no_number(world: World, draw: random.Random) -> str:
    out = world.place() / "out"
    if wrong := refused(
        Job(world.config(out), before=jobs.poisoned), "step 9 ", "holds step 8", "bad_step.json"
    ):
        return wrong
    report = json.loads((out / "bad_step.json").read_text())
    if report["step"] != 9 or report["learning_rate"] <= 0 or "--max_iters=10" not in report["command"]:
        return f"bad_step.json: {report}"
    return world.goes_on(out)


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
    "a bit flipped in ckpt.pt": flipped_checkpoint,
    "ckpt.pt truncated": truncated_checkpoint,
    "ckpt.pt gone": missing_checkpoint,
    "a bit flipped in a .bin": flipped_data,
    "a bit flipped in meta.json": flipped_meta,
    "a bit flipped in tokenizer.json": flipped_tokenizer,
    "a file of the data truncated": truncated_data,
    "disk full in a save": full_disk_in_a_save,
    "disk full at the start": full_disk_at_the_start,
    "disk full in the log": full_disk_in_the_log,
    "disk full in prepare": full_disk_in_prepare,
    "a second run; then its stale lock": second_run,
    "SIGTERM": stopped_by(signal.SIGTERM),
    "SIGINT": stopped_by(signal.SIGINT),
    "SIGUSR1": stopped_by(signal.SIGUSR1),
    "SIGHUP": stopped_by(signal.SIGHUP),
    "the loss is not a number": no_number,
    "out of memory": out_of_memory,
    "one of two processes dies": one_of_two_dies,
    "one of two processes hangs": one_of_two_hangs,
    "spaces and Chinese in paths": odd_place,
    "a folder that cannot be made": impossible_place,
    "no network": without_network,
    "the clock goes backwards": clock_goes_backwards,
    "the terminal is resized, then closed": terminal_closes,
}
