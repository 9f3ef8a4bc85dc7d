"""The census of senses: what it counts is what edits and plain formulas give, window by window."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny, tiny_model
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from nanobackpack import BackpackLM, InputError, commands, load_model
from nanobackpack.analysis import census as module
from nanobackpack.analysis import control
from nanobackpack.analysis.census import census
from nanobackpack.analysis.control import ScaleSense

Windows = list[tuple[Tensor, Tensor]]


@pytest.fixture
def windows() -> Windows:
    """Six windows of 12 tokens in two batches, then what is left, one of 2: real tokens of a tiny model."""
    ids = torch.randint(19, (6 * 12 + 3,), generator=torch.Generator().manual_seed(2))
    x, y = ids[:-1], ids[1:]
    whole = zip(x[:72].view(-1, 12).split(4), y[:72].view(-1, 12).split(4), strict=True)
    return [*whole, (x[None, 72:], y[None, 72:])]


def losses(model: BackpackLM, windows: Windows, edit: tuple[ScaleSense, ...] = ()) -> Tensor:
    """The mean loss of each window under an edit, (N)."""
    rows = [pair for x, y in windows for pair in zip(x, y, strict=True)]
    return torch.stack([cross_entropy(model(x[None], edits=edit).logits[0], y) for x, y in rows])


def test_what_a_sense_costs_is_what_the_edit_costs(backpack: BackpackLM, windows: Windows) -> None:
    """In each window, and as a mean over tokens."""
    found = census(backpack, windows)
    K = backpack.config.n_sense_vector
    with torch.no_grad():
        whole = losses(backpack, windows)
        edits = [(ScaleSense("all", 0.0, sense),) for sense in range(K)]
        without = torch.stack([losses(backpack, windows, edit) for edit in edits], dim=1)  # (N, K)
    expected = (without - whole[:, None]).double()  # (N, K)
    assert torch.allclose(found.by_window, expected, atol=1e-5)
    assert found.by_window.abs().max() > 0.01
    with torch.no_grad():
        smaller = losses(backpack, windows, (ScaleSense("all", 1 - 1 / K),)) - whole
    weights = torch.tensor([12.0] * 6 + [2]).double() / 74
    assert found.cost == pytest.approx((weights @ expected).tolist(), abs=1e-5)
    assert found.smaller == pytest.approx((weights @ smaller.double()).item(), abs=1e-5)
    assert (found.loss, found.tokens) == (pytest.approx((weights @ whole.double()).item(), abs=1e-5), 74)


def test_statistics_by_hand(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variance from the logits themselves, α position by position, norms and cosines token by token; the same
    in pieces of one window and few positions at a time."""
    model = tiny_model()
    found, n = census(model, windows), model.config.n_token
    E, C, K = model.wte.weight.detach()[:n], model.sense_vectors(), 4
    shares, looks, norms, cosines = torch.zeros(K), [], [], []
    for x in (row for rows, _ in windows for row in rows):
        alpha = model.contextualization(x[None])[0]  # (K, T, T)
        logits = torch.stack([alpha[sense] @ C[x, sense] @ E.T for sense in range(K)])  # (K, T, V)
        centred = logits - logits.mean(dim=2, keepdim=True)
        shares += (centred * centred.sum(dim=0)).sum(dim=(1, 2))
        for i in range(2, len(x)):
            row = alpha[:, i, : i + 1]  # (K, i + 1)
            entropy = -(row * row.log()).sum(dim=1)
            looks.append(torch.stack([entropy, entropy.exp(), row[:, i], row[:, i - 1], row[:, 0]]))
        norms += [C[j].norm(dim=1) for j in x]
        cosines += [cosine_similarity(C[j][:, None], C[j][None], dim=2) for j in x]
    means = [shares / shares.sum(), *torch.stack(looks).mean(dim=0), torch.stack(norms).mean(dim=0)]
    for name, expected in zip(module.MEANS, means, strict=True):
        assert found.means[name] == pytest.approx(expected.tolist(), abs=1e-5), name
    cosine = torch.stack(cosines).mean(dim=0) - 2 * torch.eye(K)
    assert found.like == cosine.argmax(dim=1).tolist()
    assert found.cosine == pytest.approx(cosine.amax(dim=1).tolist(), abs=1e-5)

    monkeypatch.setattr(module, "ALIVE", 90)  # four positions of 19 + 4 logits
    small = census(model, iter(windows))
    assert torch.allclose(small.by_window, found.by_window, atol=1e-5)
    for name, values in found.means.items():
        assert small.means[name] == pytest.approx(values, abs=1e-5), name


def test_dead_and_duplicate_senses(windows: Windows) -> None:
    """A sense that is nothing is dead; one that is half of another is its duplicate, and no others are."""
    model = control.bake(tiny_model(), ScaleSense("all", 0.0, 1))
    assert isinstance(model, BackpackLM)
    with torch.no_grad():
        model.senses.table[:, 3] = model.senses.table[:, 0] / 2
    found = census(model, windows)
    assert (found.dead, found.duplicate) == ([False, True, False, False], [True, False, False, True])
    assert (found.like[0], found.like[3], found.cost[1]) == (3, 0, 0)
    assert [row["sense"] for row in found.records() if row["dead"]] == [1]
    stored = json.loads(found.to_json())
    assert (stored["dead"], stored["duplicate"]) == (found.dead, found.duplicate)
    # Where an interval is given, what it leaves open decides.
    costs = replace(found, interval=[(1.0, 2.0)] * 4)
    assert costs.dead == [False] * 4
    assert re.search(r"sense 1 .* dead$", found.table(), re.MULTILINE)
    assert re.search(r"sense 3 .* 0 \(1.00\) +duplicate$", found.table(), re.MULTILINE)


def test_what_has_no_census(windows: Windows) -> None:
    with pytest.raises(InputError, match="GPT"):
        census(tiny_model(model_name="gpt2"), windows)
    with pytest.raises(InputError, match="less than 3 tokens"):
        census(tiny_model(), windows[-1:])


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the first windows, prints intervals and untrained models beside the costs, writes JSON and a
    picture; without a text it says how to name one."""
    folder, text = save_tiny(tmp_path / "run", "abcdefg\n"), tmp_path / "text.txt"
    text.write_text("abcdefg\nbadface" * 12, encoding="utf-8")
    argv = [f"--out_dir={folder}", "--device=cpu", f"--held_out={text}", "--limit=9"]

    def run(*flags: str, status: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            commands.main(["census", *flags])
        assert (end.value.code or 0) == status
        return capsys.readouterr()

    out, err = run(*argv, f"--json={tmp_path}/j", f"--plot={tmp_path}/p.png")
    assert err == ""
    found = json.loads((tmp_path / "j").read_text())
    ids = torch.tensor(load_model(folder).tokenizer.encode(text.read_text()))  # type: ignore[union-attr]
    model = load_model(folder)
    again = census(model, [(ids[:108].view(9, 12), ids[1:109].view(9, 12))])
    assert found["cost"] == pytest.approx(again.cost, abs=1e-5)
    assert (found["tokens"], len(found["untrained"])) == (108, 3)
    for (low, high), cost in zip(found["interval"], found["cost"], strict=True):
        assert low < cost < high
    head, *lines = out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["sense"] * 4 + ["all", "untrained"]
    share = f"{100 * again.means['variance'][3]:.1f} %"
    assert lines[3].index(share) == head.index("variance")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    plain, _ = run(*argv[:3], "--limit=0", "--controls=False")
    assert "179 tokens" in plain
    assert "untrained" not in plain
    _, err = run(*argv[:2], status=2)
    assert err.count("\n") == 1
    assert "a .bin file with --held_out" in err
    monkeypatch.setattr(module.Census, "plot", lambda *_: 1 / 0)  # a picture that fails costs no figures
    (tmp_path / "j").unlink()
    with pytest.raises(ZeroDivisionError):
        commands.main(["census", *argv, "--limit=2", "--controls=False", f"--json={tmp_path}/j", "--plot=p"])
    assert json.loads((tmp_path / "j").read_text())["tokens"] == 24
