"""Killed at random moments, a run ends as if nothing had happened: same history, same weights, bit for bit.

Real processes are killed with SIGKILL, at random moments: while text is read, the vocabulary learned,
the store written, a step taken, a checkpoint saved. To spare each of them the seconds that importing
torch takes, a server process imports it once and forks a child for each command.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import toy_lines

SERVER = """
import os, sys
import torch
import sklearn.model_selection, sklearn.linear_model, sklearn.feature_extraction.text
import bertlab.pretraining, bertlab.study.quickstart
from bertlab.cli import main
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    cache, *words = line.split()
    child = os.fork()
    if not child:
        os.environ["BERTLAB_CACHE"] = cache
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main(words))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SHAPE = "--d-model 16 --heads 2 --d-ff 32 --layers 1 --merges 40 --eval-sentences 30"
TRAIN = "--batch-size 8 --epochs 2 --evals-per-epoch 5 --optimizer muon --schedule wsd --lr 0.01"
PRETRAIN = f"pretrain {SHAPE} {TRAIN} --dropout 0.1 --keep-checkpoints 1"
FINETUNE = "finetune --epochs 5 --batch-size 8 --n-filters 6 --kernel-sizes 2,3 --freeze none --lr 0.01"


@pytest.fixture(scope="module")
def start():
    "Start a command in a child of the server: its process id, and a function that waits for its exit status."
    env = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as server:
        assert server.stdout.readline() == "ready\n"

        def start(cache, command):
            print(cache, command, file=server.stdin, flush=True)
            return int(server.stdout.readline()), lambda: int(server.stdout.readline())

        yield start
        server.stdin.close()


@pytest.fixture(scope="module")
def reference_runs(start, tmp_path_factory):
    "The folder with text, labels, and the two undisturbed runs; and how long each took."
    workdir = tmp_path_factory.mktemp("reference")
    things, states = ("array", "figure"), ("sorted", "drawn")
    (workdir / "text.txt").write_text("\n".join(toy_lines()), encoding="utf8")
    letters = [a + b for a in "abcdefghij" for b in "klmno"]
    rows = [
        f"the {thing} {name} is {state},{thing}" for name in letters for thing, state in zip(things, states)
    ]
    (workdir / "labels.csv").write_text("\n".join(["text,label", *rows]), encoding="utf8")
    took = {}
    for kind in ("pretrain", "finetune"):
        begun = time.perf_counter()
        assert start(workdir / "cache", command(kind, workdir, workdir / kind))[1]() == 0
        took[kind] = time.perf_counter() - begun
    return workdir, took


def command(kind, workdir, out):
    if kind == "pretrain":
        return f"{PRETRAIN} --corpus {workdir / 'text.txt'} --out {out}"
    return f"{FINETUNE} --model {workdir / 'pretrain' / 'model'} --data {workdir / 'labels.csv'} --out {out}"


def outcome(run: Path):
    "What must be equal: the record without times, and the bytes of the model."
    record = json.loads((run / "record.json").read_text(encoding="utf8"))
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]
    same = {k: record[k] for k in ("config", "corpus", "result", "tokens")}
    return {"history": history, **same, **{p.name: p.read_bytes() for p in sorted((run / "model").iterdir())}}


def sleep_until_random_moment(run: Path, took: float, rng: random.Random):
    "Sleep until a random moment: of the whole run, or more often of its training, after the next checkpoint."
    known, patience = set(run.glob("checkpoints/*")), time.monotonic() + took
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, took))
        return
    while set(run.glob("checkpoints/*")) <= known and time.monotonic() < patience:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1 * took))


def kill_and_resume(start, reference_runs, kind, folder, kills, seed):
    "Kill runs at random moments until there were enough kills; each run that gets to its end is compared."
    workdir, took = reference_runs
    rng, killed, finished, moments = random.Random(seed), 0, 0, set()
    expected = outcome(workdir / kind)
    while killed < kills or not finished:
        run, status = folder / f"run{finished}", None
        while status != 0:
            process, wait = start(folder / f"cache{finished}", command(kind, workdir, run))
            if killed < kills:
                sleep_until_random_moment(run, took[kind], rng)
                with contextlib.suppress(ProcessLookupError):  # it was faster
                    os.kill(process, signal.SIGKILL)
            status = wait()
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            moments.add(tuple(sorted(p.name for p in run.rglob("*") if "step-" in p.name)))
        got = outcome(run)
        assert {k: v for k, v in got.items() if v != expected[k]} == {}
        assert len(list(run.glob("checkpoints/*"))) <= 3 and not list(
            run.rglob("*.part")
        )  # the last two and the best
        finished += 1
    return killed, len(moments)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_killed_a_few_times_ends_the_same(start, reference_runs, tmp_path, kind):
    kill_and_resume(start, reference_runs, kind, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind, kills", [("pretrain", 40), ("finetune", 20)])
def test_a_run_killed_many_times_ends_the_same(start, reference_runs, tmp_path, kind, kills):
    killed, moments = kill_and_resume(start, reference_runs, kind, tmp_path, kills, seed=int(time.time()))
    assert killed >= kills and moments > 5  # at many different places


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_saves_and_exits_with_130(start, reference_runs, tmp_path, sign):
    workdir, _ = reference_runs
    process, wait = start(workdir / "cache", command("pretrain", workdir, tmp_path / "run"))
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        time.sleep(0.002)
    os.kill(process, sign)
    assert wait() == 130
    assert (
        list((tmp_path / "run").glob("checkpoints/step-*"))
        and not (tmp_path / "run" / "record.json").exists()
    )
    assert start(workdir / "cache", command("pretrain", workdir, tmp_path / "run"))[1]() == 0
    assert outcome(tmp_path / "run") == outcome(workdir / "pretrain")
