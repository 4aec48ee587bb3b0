"The trials: what no single cell can show - the command, kill and resume, records that are damaged or of other runs."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from joblib import parallel_config

from bertlab.cli import main
from bertlab.core.files import BertlabError, write_json
from bertlab.study import claims, scales, trials

ENV = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
BERTLAB = str(Path(sys.executable).parent / "bertlab")
TINY = scales.Scale(
    "messages",
    width=32,
    heads=8,
    layers=6,
    merges=50,
    batch=8,
    epochs=200,
    max_len=32,
    eval_sentences=50,
    evals_per_epoch=20,
)


def bertlab(*words, **env):
    return subprocess.run(
        [BERTLAB, *map(str, words)], capture_output=True, text=True, env=ENV | env, timeout=120
    )


@pytest.fixture
def tiny(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setitem(scales.SCALES, "tiny", TINY)
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BERTLAB_RECORDS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def made_up(row_id, accuracy, seed=0):
    row = {
        "epoch": 1.0,
        "lr": 1e-3,
        "train_accuracy": accuracy,
        "valid_accuracy": accuracy,
        "train_loss": 2.0,
        "valid_loss": 2.0,
    }
    scores = {"accuracy": accuracy, "loss": 2.0, "bits_per_char": 1.0}
    return {
        "kind": "pretraining",
        "trial": row_id,
        "scale": "mini",
        "seed": seed,
        "result": scores,
        "history": [row],
    }


def test_the_command_lists_every_row(tmp_path):
    write_json(tmp_path / "trial_mini_T5.1.json", made_up("T5.1", 0.5))
    done = bertlab("trials", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split("|")[1].strip(): line for line in done.stdout.splitlines()[2:]}
    assert set(lines) == set(trials.ROWS)
    assert [cell.strip() for cell in lines["T5.1"].split("|")[5:8]] == ["0.910", "0.680", "1"]


@pytest.mark.parametrize(
    "words, says",
    [
        (["run"], "say --all"),
        (["run", "T5", "--all"], "say --all"),
        (["run", "T99"], "no row 'T99'"),
        (["run", "FT.1"], "a search"),
        (["run", "T4", "--scale", "huge"], "Choose one of mini, sample, full, study"),
        (["run", "T4", "--scale", "full"], "--corpus"),
        (["run", "T4", "--scale", "full", "--corpus", "no/such"], "no such file"),
        (["run", "T4", "--jobs", "0"], "jobs 0"),
    ],
)
def test_mistakes_cost_one_line(words, says, tmp_path, capsys):
    assert main(["trials", *words, "--folder", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and says in told


def test_run_twice_and_only_what_is_missing(tiny, capsys):
    first = scales.run_trials(["T4.2", "T6"], "tiny")
    assert [r["trial"] for r in first] == ["T4.2", "T6.1", "T6.2"]
    (tiny / "trial_tiny_T6.1.json").unlink()
    capsys.readouterr()
    again = scales.run_trials(["T4", "T6"], "tiny")
    done_before = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "done before" in line]
    assert done_before == ["T4.2", "T6.2"]
    assert [r["result"] for r in again[1:]] == [r["result"] for r in first]
    assert all(path.stat().st_size < 20_000 for path in tiny.glob("*.json"))


def test_two_at_a_time(tiny):
    with parallel_config(backend="threading"):  # processes of their own would not know the scale of this test
        assert [r["trial"] for r in scales.run_trials(["T4", "T6.1"], "tiny", jobs=2)] == [
            "T4.1",
            "T4.2",
            "T6.1",
        ]
    assert sorted(p.name for p in tiny.glob("*.json")) == [
        "trial_tiny_T4.1.json",
        "trial_tiny_T4.2.json",
        "trial_tiny_T6.1.json",
    ]


def test_a_seed_has_a_record_of_its_own(tiny):
    a, b = scales.run_trial("T4.1", "tiny"), scales.run_trial("T4.1", "tiny", seed=1)
    assert a["result"] != b["result"]
    assert sorted(p.name for p in tiny.glob("*.json")) == [
        "trial_tiny_T4.1.json",
        "trial_tiny_T4.1_seed1.json",
    ]
    assert claims.spread([a, b], "accuracy") is not None


def test_a_record_knows_what_it_cost_and_where_it_does_not_matter(tiny):
    r = scales.run_trial("T4.1", "tiny")
    assert r["flops"] == pytest.approx(r["tokens"] * r["flops_per_token"], rel=1e-2)
    assert r["parameters"] > 0 and r["settings"]
    assert str(tiny.parent) not in json.dumps(r)


def test_killed_and_run_again(tiny):
    code = (
        "from dataclasses import replace; import sys; from bertlab.study import scales; from test_trials import TINY\n"
        "scales.SCALES['tiny'] = replace(TINY, epochs=40)\n"
        "print(scales.run_trial('T4.1', 'tiny')['result'])"
    )
    env = (
        os.environ
        | ENV
        | {
            "BERTLAB_CACHE": os.environ["BERTLAB_CACHE"],
            "BERTLAB_RECORDS": str(tiny),
            "PYTHONPATH": str(Path(__file__).parent),
        }
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.time() + 60
    while (
        not list((tiny.parent / "cache").glob("trials/*/checkpoints/*"))
        and time.time() < deadline
        and victim.poll() is None
    ):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not list(tiny.glob("*.json"))
    resumed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    env["BERTLAB_CACHE"], env["BERTLAB_RECORDS"] = str(tiny.parent / "cache2"), str(tiny.parent / "runs2")
    whole = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert resumed.stdout == whole.stdout and "accuracy" in whole.stdout, resumed.stderr + whole.stderr


def test_a_record_of_other_settings_is_not_taken_for_this_run(tiny, monkeypatch):
    scales.run_trial("T4.1", "tiny")
    monkeypatch.setitem(scales.SCALES, "tiny", replace(TINY, epochs=100))
    with pytest.raises(BertlabError, match="other settings"):
        scales.run_trial("T4.1", "tiny")


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "trial_mini_T4.1.json").write_text("{", encoding="utf8")
    with pytest.raises(BertlabError, match="trial_mini_T4.1.json"):
        claims.trial_records("mini", tmp_path)


def test_a_run_that_diverges_does_not_stop_the_others(tiny, monkeypatch, capsys):
    real = scales.pretrain

    def pretrain(config, folder):
        if config.train.lr == TINY.width * 5e-4:
            raise scales.DivergedError(3, config.train.lr, None, [])
        return real(config, folder)

    monkeypatch.setattr(scales, "pretrain", pretrain)
    assert [r["trial"] for r in scales.run_trials(["T4"], "tiny")] == ["T4.2"]
    assert "T4.1  seed 0  diverged: the loss" in capsys.readouterr().out


def test_verdicts_need_more_than_luck():
    rule = "T4.1 accuracy > T4.2 accuracy"
    runs = lambda a, b, noise: [
        made_up("T4.1", a - noise),
        made_up("T4.1", a + noise, 1),
        made_up("T4.2", b - noise),
        made_up("T4.2", b + noise, 1),
    ]
    assert claims.verdict(rule, runs(0.62, 0.60, 0.001))["verdict"] == "reproduced"
    assert claims.verdict(rule, runs(0.60, 0.62, 0.001))["verdict"] == "not reproduced"
    assert claims.verdict(rule, runs(0.62, 0.60, 0.02))["verdict"].startswith("undecided")
    chain = "T2.3 accuracy > T2.2 accuracy > T2.1 accuracy"
    ordered = [made_up(f"T2.{i}", a, s) for i, a in ((1, 0.1), (2, 0.2), (3, 0.15)) for s in (0, 1)]
    assert (
        claims.verdict(chain, ordered)["verdict"] == "not reproduced"
    )  # one link of the chain points the other way
