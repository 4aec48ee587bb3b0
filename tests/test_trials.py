"The trials: the command, kill and resume, and records that are damaged or belong to other runs."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers import assert_error
from joblib import parallel_config

from bertlab import pretraining, training
from bertlab.cli import main
from bertlab.core.files import BertlabError, record_errors, write_json
from bertlab.data.corpora import open_corpus
from bertlab.encoder import EncoderConfig
from bertlab.pretraining import PretrainConfig, pretrain
from bertlab.study import claims, scales, trials
from bertlab.token_store import DataConfig
from bertlab.training import TrainConfig

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
        "row_id": row_id,
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
        (["run", "T4", "--scale", "huge"], "Choose one of mini, full, study"),
        (["run", "T4", "--scale", "full"], "--corpus"),
        (["run", "T4", "--scale", "full", "--corpus", "no/such"], "no such file"),
        (["run", "T4", "--jobs", "0"], "jobs 0"),
        (["run", "T4", "--seeds", str(2**31)], "Choose 1 to 10,000 seeds"),
    ],
)
def test_mistakes_cost_one_line(words, says, tmp_path, capsys):
    assert main(["trials", *words, "--folder", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and says in told


def test_run_twice_and_only_what_is_missing(tiny, capsys):
    first = scales.run_trials(["T4.2", "T6"], "tiny")
    assert [r["row_id"] for r in first] == ["T4.2", "T6.1", "T6.2"]
    (tiny / "trial_tiny_T6.1.json").unlink()
    capsys.readouterr()
    again = scales.run_trials(["T4", "T6"], "tiny")
    done_before = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "done before" in line]
    assert done_before == ["T4.2", "T6.2"]
    assert [r["result"] for r in again[1:]] == [r["result"] for r in first]
    assert all(path.stat().st_size < 20_000 for path in tiny.glob("*.json"))


def test_two_at_a_time(tiny):
    with parallel_config(backend="threading"):  # processes of their own would not know the scale of this test
        assert [r["row_id"] for r in scales.run_trials(["T4", "T6.1"], "tiny", jobs=2)] == [
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
    assert len(claims.metric_values(trials.Metric("T4.1", "accuracy"), [a, b])) == 2


def test_a_record_knows_what_it_cost_and_where_it_does_not_matter(tiny):
    r = scales.run_trial("T4.1", "tiny")
    assert r["flops"] == pytest.approx(r["tokens"] * r["flops_per_token"], rel=1e-2)
    assert r["parameters"] > 0 and r["config_fingerprint"]
    assert str(tiny.parent) not in json.dumps(r)


def test_killed_and_run_again(tiny):
    code = (
        "from dataclasses import replace; from bertlab.study import scales; from test_trials import TINY\n"
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
    with pytest.raises(BertlabError, match=r"trial_mini_T4\.1\.json"):
        claims.trial_records("mini", tmp_path)


@pytest.mark.parametrize("change", [{"corpus": []}, {"config": None}, {"config": {"data": 3}}])
def test_a_record_that_is_none_of_a_trial_is_one_line(tiny, change):
    job = scales.trial_job("T4.1", "tiny", None, tiny, 0)
    write_json(job.path, {"config": {"data": {}}, "corpus": {}, "config_fingerprint": "other"} | change)
    assert_error(lambda: scales.run_trial("T4.1", "tiny", folder=tiny), job.path, "is not the record")
    with pytest.raises(BertlabError, match="is not the record"), record_errors(job.path):
        scales._describe_end(job, {"record": {"result": {"accuracy": "high"}}, "done_before": True})


def test_a_trial_whose_record_could_not_be_written_does_not_begin(tiny, monkeypatch):
    "Seen before: told after the training."
    monkeypatch.setattr(scales, "pretrain", lambda *args, **options: 1 / 0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_error(lambda: scales.run_trial("T4.1", "tiny", folder=tiny), tiny, "cannot be written to")


def test_a_run_that_diverges_does_not_stop_the_others(tiny, monkeypatch, capsys):
    real = scales.pretrain

    def pretrain(config, folder, estimated_seconds=None):
        if config.train.lr == TINY.width * 5e-4:
            raise scales.DivergedError(3, config.train.lr, None, [])
        return real(config, folder)

    monkeypatch.setattr(scales, "pretrain", pretrain)
    assert [r["row_id"] for r in scales.run_trials(["T4"], "tiny")] == ["T4.2"]
    assert "T4.1  seed 0  diverged: the loss" in capsys.readouterr().out


def test_a_verdict_depends_on_the_scatter_of_the_rows_compared():
    claim = trials.rank_rows("", "accuracy", "T4.1", "T4.2")

    def runs(a, b, noise):
        means = {"T4.1": a, "T4.2": b}
        return [made_up(row, m + d * noise, i) for row, m in means.items() for i, d in enumerate((-1, 0, 1))]

    assert claims.test_claim(claim, runs(0.62, 0.60, 0.001)).verdict == "reproduced"
    assert claims.test_claim(claim, runs(0.60, 0.62, 0.001)).verdict == "not reproduced"
    (undecided,) = claims.test_claim(claim, runs(0.62, 0.60, 0.02)).comparisons
    assert undecided.verdict == "undecided" and "seeds per row would decide" in undecided.reason
    assert undecided.low < 0 < undecided.high and undecided.effect == pytest.approx(2.0)
    two = [made_up("T4.1", 0.60 + i / 100, i) for i in (0, 1)] + [
        made_up("T4.2", 0.55 + i / 1e4, i) for i in (0, 1)
    ]
    (undecided,) = claims.test_claim(
        claim, two
    ).comparisons  # one side scatters, so it needs more than it has
    assert undecided.reason == "about 3 seeds per row would decide"
    (equal,) = claims.test_claim(claim, runs(0.6, 0.6, 0.0)).comparisons
    assert equal.reason == "more than 100 seeds per row would be needed"
    noisy = [made_up("T5.1", a, i) for i, a in enumerate((0.1, 0.5, 0.9))]  # another row changes nothing
    assert claims.test_claim(claim, runs(0.62, 0.60, 0.001) + noisy).verdict == "reproduced"


def test_of_a_chain_each_comparison_is_judged():
    chain = trials.rank_rows("", "accuracy", "T2.3", "T2.2", "T2.1")
    means = {"T2.1": 0.1, "T2.2": 0.2, "T2.3": 0.15}
    ordered = [made_up(row, m + 0.001 * s, s) for row, m in means.items() for s in (0, 1, 2)]
    result = claims.test_claim(chain, ordered)
    assert [c.verdict for c in result.comparisons] == ["not reproduced", "reproduced"]
    assert result.verdict == "not reproduced" and len(claims.claims_table([result])) == 2


# ---------------------------------------------------------------- a run is what decides its outcome


def tiny_config(path, epochs=2):
    return PretrainConfig(
        DataConfig(str(path), merges=30),
        EncoderConfig(d_model=16, heads=2, d_ff=32, layers=1),
        train=TrainConfig(epochs=epochs, batch_size=8),
    )


def write_lines(path, n=60, word="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"the {word} cat {i} sat on mat {i * 7}" for i in range(n)), encoding="utf8")
    return path


def stop_after(monkeypatch, steps):
    "Make the training end with Ctrl-C after so many steps."
    real, count = training._train_step, iter(range(steps))

    def step(*args):
        real(*args)
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "_train_step", step)


@pytest.mark.parametrize("finished", [True, False])
def test_an_edited_corpus_is_another_run(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    config = tiny_config(write_lines(tmp_path / "text.txt"))
    if finished:
        pretrain(config, tmp_path / "run")
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(patch, 3)
            pretrain(config, tmp_path / "run")
    before = open_corpus(config.data.corpus).fingerprint
    write_lines(tmp_path / "text.txt", word="raw")  # of the same size
    now = open_corpus(config.data.corpus).fingerprint
    with pytest.raises(BertlabError, match="holds a run on another corpus") as error:
        pretrain(config, tmp_path / "run")
    assert before in str(error.value) and now in str(error.value)


def test_a_corpus_may_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    record = pretrain(tiny_config(write_lines(tmp_path / "a" / "text.txt")), tmp_path / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    assert pretrain(tiny_config(tmp_path / "b" / "text.txt"), tmp_path / "run") == record


def test_a_swapped_tokenizer_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    config = tiny_config(write_lines(tmp_path / "text.txt"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        pretrain(config, tmp_path / "run")
    monkeypatch.setattr(pretraining, "tokenizer_fingerprint", lambda tokenizer: "another")
    with pytest.raises(BertlabError, match="another tokenizer"):
        pretrain(config, tmp_path / "run")


def test_a_finished_run_is_trained_longer_on_purpose(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    path = write_lines(tmp_path / "text.txt")
    pretrain(tiny_config(path), tmp_path / "run")
    longer = pretrain(tiny_config(path, epochs=4), tmp_path / "run")
    assert longer["history"][-1]["epoch"] == 4
    assert longer["result"] == pretrain(tiny_config(path, epochs=4), tmp_path / "whole")["result"]


def test_trials_on_two_corpora_of_one_name_are_two(tiny, tmp_path):
    paths = [write_lines(tmp_path / folder / "text.txt", 400, folder) for folder in ("red", "raw")]
    first = scales.run_trial("T4.1", "tiny", str(paths[0]))
    with pytest.raises(BertlabError, match="on another corpus"):
        scales.run_trial("T4.1", "tiny", str(paths[1]))
    (tmp_path / "red").rename(tmp_path / "moved")
    assert scales.run_trial("T4.1", "tiny", str(tmp_path / "moved" / "text.txt")) == first


def test_a_model_is_saved_before_its_baseline_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    config = tiny_config(write_lines(tmp_path / "text.txt"))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(pretraining, "unigram_scores", lambda task: (_ for _ in ()).throw(RuntimeError()))
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert pretrain(config, tmp_path / "run")["unigram"]["loss"] > 0


def test_a_record_notes_what_was_cut_and_a_model_that_learnt_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    config = tiny_config(write_lines(tmp_path / "text.txt"))
    config = replace(
        config, encoder=replace(config.encoder, max_len=5), train=TrainConfig(lr=1e-9, batch_size=8)
    )
    cut, worse = pretrain(config, tmp_path / "run")["notes"]
    assert "tokens" in cut and "beyond 5 tokens" in cut
    assert "worse than token frequencies" in worse


@pytest.mark.parametrize("number, code", [(signal.SIGINT, (130,)), (signal.SIGTERM, (130, 143))])
def test_stopped_trials_leave_no_process_and_no_record(number, code, tmp_path):
    env = ENV | {"BERTLAB_CACHE": str(tmp_path / "cache"), "BERTLAB_RECORDS": str(tmp_path / "records")}
    text = write_lines(tmp_path / "text.txt", 20_000)
    words = [BERTLAB, "trials", "run", "T4", "--scale", "mini", "--jobs", "2", "--corpus", str(text)]
    command = subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline, runs = time.time() + 90, tmp_path / "cache" / "trials"
    while (
        len(list(runs.glob("*/checkpoints/step-*"))) < 2 and time.time() < deadline and command.poll() is None
    ):
        time.sleep(0.1)
    children = psutil.Process(command.pid).children(recursive=True)
    assert children, command.stderr.read() if command.poll() is not None else "no children"
    command.send_signal(number)
    assert command.wait(timeout=60) in code, command.stderr.read()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert not list((tmp_path / "records").glob("*.json"))
