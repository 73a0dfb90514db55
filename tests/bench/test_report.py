"""Records, pages and plots, from made-up figures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import machine, ours, page, report
from bench.bars import bars, ratio, shares
from bench.cases import Adaptive, Recurrent, Softmax
from bench.catalogue import FAMILIES, LOOP
from bench.measure import check_agreement, contenders, result_of
from bench.memory import Memory
from bench.record import Record
from bench.work import Work

FUSED = "torch (linear_cross_entropy)"
ONNX = "ONNX Runtime"


def made_up(peer: bool = True) -> Record:
    """All cases with 1 and 2 threads; pynlm 2 times faster with one, 3 times with two.

    Forward only, ONNX Runtime is as fast as pynlm, and slower where there is one row.
    """
    record = Record("some-machine", 2, {"CPU": "Some CPU"})
    record.peaks = {n: {"best": n * 1e11, "median": n * 9e10, "bursts": 5.0} for n in (1, 2)}
    for n in (1, 2):
        for case in (case for family in FAMILIES.values() for case in family):
            own = case.flops / (n * 1e11) / 0.5
            seconds = {ours.NAME: [own, own * 1.1, own * 0.9]}
            if peer:
                seconds["torch"] = [s * (n + 1) for s in seconds[ours.NAME]]
            if isinstance(case, Recurrent) and case.variant:
                slower = 1.4 if case.H == 650 else 1.1
                seconds[ours.PLAIN] = [s / slower for s in seconds[ours.NAME]]
            if peer and isinstance(case, Recurrent) and not case.train:
                slower = 1.2 if case.B == 1 else 1.0
                seconds[ONNX] = [s * slower for s in seconds[ours.NAME]]
            if peer and not isinstance(case, Recurrent):
                seconds[FUSED] = [s * 9 for s in seconds[ours.NAME]]
            record.results.append(result_of(case, n, seconds))
    record.memory = [Memory("zaremba-small", "pynlm", 2, 100, 2**20, 2**20, 3 * 2**20, 2**22)]
    record.left_out = {"softmax training 1,2,3": "takes up to 99 GiB"}
    return record


def test_summaries() -> None:
    found = {(s.group, s.threads): s for s in made_up().summaries()}
    assert found["LSTM training", 1].mean == pytest.approx(2)
    assert found["softmax training", 2].least == pytest.approx(3)
    assert found["GRU forward only", 2].shares == pytest.approx((0.5, 0.5))
    assert found["GRU forward only", 2].mean == pytest.approx(1.2 ** (1 / 9))
    assert found["LM training step", 1].cases == len(FAMILIES["train"])
    # a plain cell beside a variant is ours, no peer
    assert found["LSTM zoneout", 2].mean == pytest.approx(3)


def test_variants_beside_the_plain_cell() -> None:
    found = {(v.group, v.threads): v for v in made_up().variants()}
    assert not {"LSTM training", "LSTM ragged training"} & {group for group, _ in found}
    assert found["GRU weight drop", 1].greatest == pytest.approx(1.4)
    assert found["GRU weight drop", 1].plain == pytest.approx((1.1**3 * 1.4) ** 0.25)
    assert found["GRU weight drop", 2].loop == pytest.approx(3)
    work = {variant: found[f"LSTM {variant}", 1].work for variant in ("coupled gates", "clipping")}
    assert work == pytest.approx({"coupled gates": 0.75, "clipping": 1})
    assert found["GRU bidirectional", 1].work == pytest.approx(2)
    # w_ih and half of w_hh in four gates, and w_hr: 4 + 2 + 1/2 beside 8
    assert found["LSTM projection", 1].work == pytest.approx(6.5 / 8)
    assert all(v.loop is None for v in made_up(peer=False).variants())


def test_bars() -> None:
    record = made_up()
    found = {(bar.work, bar.threads): bar for bar in bars(record)}
    training = found["LSTM training", 2]
    assert training.mean == pytest.approx(3) and training.aimed and training.met
    assert found["LSTM training", 1].goal.mean == 1.25
    # only told, not aimed at
    assert not found["GRU training", 1].aimed
    # against ONNX Runtime, not against torch, which is far slower here
    forward = found["RNN forward only", 2]
    assert forward.mean == pytest.approx(1.2 ** (1 / 9)) and forward.least == pytest.approx(1)
    assert forward.goal.against == ONNX and not forward.met
    assert found["RNN scoring", 2].met
    narrow = found["GRU zoneout, H ≤ 128", 2]
    assert (narrow.cases, narrow.goal.mean, narrow.met) == (1, 5.0, False)
    assert found["GRU zoneout", 2].cases == 4
    assert not bars(made_up(peer=False))


def test_bars_for_shares_of_the_peak() -> None:
    found = [s for s in shares(made_up()) if s.threads == 2]
    assert [s.cases for s in found] == [1, 7]
    assert [s.least for s in found] == pytest.approx([0.5, 0.5])
    assert not any(s.met for s in found)


def test_ratio_to_one_peer() -> None:
    seconds = {ours.NAME: [1.0], "torch": [4.0], "torch (functional_call)": [2.0], ONNX: [1.5]}
    result = result_of(Softmax(2, 3, 4), 1, seconds)
    assert (result.peer, result.libraries) == (ONNX, ["torch", ONNX])
    assert [ratio(result, whom) for whom in ("torch", LOOP, ONNX, "JAX")] == [2, 4, 1.5, None]


def test_goals_hold_for_the_right_threads() -> None:
    record = made_up()
    one, both = record.goal("LSTM training", 1), record.goal("LSTM training", 2)
    assert one is not None and both is not None and one.mean < both.mean
    assert record.goal("GRU training", 1) is None
    steps = [r for r in record.results if r.family == "train"]
    assert [record.step_goal(r) is not None for r in steps] == [r.threads == 2 for r in steps]


def test_record_survives_its_file(tmp_path: Path) -> None:
    record = made_up()
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record


def test_record_of_an_earlier_version() -> None:
    values = made_up().results[0].to_dict()
    del values["against"]
    assert type(made_up().results[0]).from_dict(values).against == pytest.approx({"torch": 2})


def test_files_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = made_up()
    record.save(tmp_path / "some-machine.json")
    report.main(["--render", str(tmp_path / "some-machine.json")])
    text = (tmp_path / "some-machine.md").read_text(encoding="utf-8")
    assert text.startswith("# Some CPU\n")
    assert "| LSTM training | 2 threads | 9 | 3.00× | 3.00× | 50 % to 50 % |" in text
    for line in (
        "LSTM training | 2 threads | torch | 9 | 3.00× | 1.8× | 3.00× | 1.05× | yes",
        "RNN training | 1 thread | torch | 9 | 2.00× |  | 2.00× |  | ",
        "GRU ragged training | 2 threads | torch | 3 | 3.00× | 4× | 3.00× |  | **no**",
        "RNN forward only | 2 threads | ONNX Runtime | 9 | 1.02× | 1.05× | 1.00× | 0.95× | **no**",
        "RNN zoneout, H ≤ 128 | 2 threads | torch's loop | 1 | 3.00× | 5× | 3.00× |  | **no**",
        "LSTM training, B ≥ 32, H ≥ 512 | 2 threads | 1 | 50 % | 75 % | **no**",
        "RNN zoneout | 2 threads | 4 | 1.17× | 1.40× | yes | 1.00× | 3.00×",
        "LSTM bidirectional | 2 threads | 4 | 1.17× | 1.40× |  | 2.00× | 3.00×",
        "case | 1 thread: pynlm | torch | ONNX Runtime | ratio | share of peak | peer's",
    ):
        assert f"| {line} |" in text or f"| {line} " in text, line
    assert "**3.00×** (3.00–3.00, goal 2×)" in text
    assert "| zaremba-small | pynlm | 1.0 | +0.0 | +2.0 | 4.0 |" in text
    assert "takes up to 99 GiB" in text
    plots = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(plots) == 2
    for plot in plots:
        assert 10_000 < (tmp_path / plot).stat().st_size < 200_000
    assert "geometric mean 3.00×" in capsys.readouterr().out
    for line in text.splitlines():
        assert not re.search(r"nan|None|inf\b", line), line


def test_report_without_peers(tmp_path: Path) -> None:
    report.write(made_up(peer=False), tmp_path)
    text = (tmp_path / "some-machine.md").read_text(encoding="utf-8")
    assert "some-machine-peak.png" in text
    assert "some-machine-ratio.png" not in text


def test_fastest_peer_counts() -> None:
    seconds = {ours.NAME: [1.0, 1.0], "torch": [4.0, 5.0], FUSED: [2.0, 3.0]}
    result = result_of(Softmax(2, 3, 4), 1, seconds)
    assert result.peer == FUSED
    assert result.ratio == 2.5
    assert "2.50×" in page.line(result, 1e9)


def test_busy_machine_is_told() -> None:
    record = made_up()
    assert "†" not in page.render(record, {})
    record.results[3] = replace(record.results[3], others=0.4)
    text = page.render(record, {})
    assert f"during 1 of {len(record.results)} measurements" in text
    assert text.count("†") == 2
    assert "† others took 40 %" in page.line(record.results[3], 1e9)


def test_choice_of_cases() -> None:
    assert report.chosen(["softmax"], "1024,256,81000", quick=False) == [
        Softmax(1024, 256, 81_000),
        Softmax(1024, 256, 81_000, train=False),
        Adaptive(1024, 256, 81_000, (4_000, 20_000)),
        Adaptive(1024, 256, 81_000, (4_000, 20_000), chosen=True),
    ]
    quick, every = (report.chosen(list(FAMILIES), None, quick=q) for q in (True, False))
    groups = [case.group for case in quick]
    assert len(set(groups)) == len(groups) and groups == list(dict.fromkeys(c.group for c in every))
    assert quick[0] == every[0]
    with pytest.raises(SystemExit, match="no case matches"):
        report.main(["--only", "no such case"])


def test_work_that_differs_is_no_peer() -> None:
    case = Recurrent("rnn", 2, 2, 3, 5)
    works = contenders(case, [])
    own = works[ours.NAME]
    wrong = Work(own.run, lambda: {name: value + 1 for name, value in own.results().items()})
    with pytest.raises(AssertionError, match="y against other"):
        check_agreement(case, {**works, "other": wrong})


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "--quick --family recurrent --only RNN-forward-only-100,1, --seconds 0.05 --threads 1"
    report.main([*given.split(), "--out", str(tmp_path), "--name", "here"])
    record = Record.load(tmp_path / "here-quick.json")
    assert [(r.case, r.threads) for r in record.results] == [("100,1,256,256", 1)]
    assert record.share(record.results[0]) > 0.0
    assert (tmp_path / "here-quick.md").is_file()
    assert not list(tmp_path.glob("*.partial.json"))
    assert "RNN forward only" in capsys.readouterr().out


def test_machine_names_itself() -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-\d+cpu", machine.file_name())
    assert machine.available_memory() > 2**20
    assert {"CPU", "pynlm", "NumPy", "date"} <= machine.facts([]).keys()
    share = machine.OtherWork().share()
    assert share is None or 0.0 <= share <= 1.0
