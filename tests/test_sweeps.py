"Sweeps: killed and run again they lose nothing; what diverges, or does not fit, is a result."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bertlab.cli import main
from bertlab.core.files import BertlabError, read_json, write_json
from bertlab.study import sweeps
from bertlab.training import OutOfMemoryError

SHAPE = {
    "d_model": 1024,
    "d_ff": 2048,
    "heads": 8,
    "layers": 3,
    "batch_size": 128,
    "schedule": "constant",
    "epochs": 0.1,
}
JOBS = [
    {"kind": "search", "scale": "mini", "corpus": "messages", "settings": {**SHAPE, "lr": lr}}
    for lr in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e30)
]
SWEEP = "import json, sys; from bertlab.study.sweeps import run_jobs; run_jobs(json.loads(sys.argv[1]), sys.argv[2])"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    before = os.environ.get("BERTLAB_CACHE")
    os.environ["BERTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("BERTLAB_CACHE")
    os.environ |= {"BERTLAB_CACHE": before} if before else {}


def start(folder):
    env = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SWEEP, json.dumps(JOBS), str(folder)]
    return subprocess.Popen(
        words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(folder):
    "File -> when it was written, of the tries that have come to an end."
    return {
        p: p.stat().st_mtime_ns
        for p in Path(folder).glob("tries/*.json")
        if read_json(p)["status"] in sweeps.TERMINAL_STATUSES
    }


def outcomes(folder):
    tries = [read_json(p) for p in sorted(Path(folder).glob("tries/*.json"))]
    return [{k: t[k] for k in ("settings", "status", "valid_loss", "history")} for t in tries]


def test_a_sweep_that_is_killed_and_run_again_loses_no_try(tmp_path):
    for job in JOBS:  # left alone, one after the other, without Ray
        sweeps.run_try({**job, "folder": str(tmp_path / "alone")})
    victim, patience = start(tmp_path / "killed"), time.monotonic() + 200
    while len(finished(tmp_path / "killed")) < 3:
        assert victim.poll() is None and time.monotonic() < patience, victim.stderr.read()
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    before = finished(tmp_path / "killed")
    assert 3 <= len(before) < len(JOBS)
    again = start(tmp_path / "killed")
    assert again.wait(timeout=250) == 0, again.stderr.read()
    assert outcomes(tmp_path / "killed") == outcomes(tmp_path / "alone")
    after = finished(tmp_path / "killed")
    assert (
        len(after) == len(JOBS) and {p: after[p] for p in before} == before
    )  # what was finished was not run twice


def test_divergence_is_a_result_and_is_not_run_twice(tmp_path):
    job = {**JOBS[-1], "folder": str(tmp_path)}
    end = sweeps.run_try(job)
    assert end["status"] == "diverged" and "not finite" in end["reason"] and end["valid_accuracy"] is None
    stamp = finished(tmp_path)
    assert sweeps.run_try(job) == end and finished(tmp_path) == stamp


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("a batch of 128 sentences", hint="Choose batch_size 64"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_lack_of_memory_is_a_result(tmp_path, monkeypatch, error):
    def work(job, say):
        raise error

    monkeypatch.setattr(sweeps, "_tune_encoder", work)
    end = sweeps.run_try({**JOBS[0], "folder": str(tmp_path)})
    assert end["status"] == "out of memory" and end["reason"] == str(error)


def test_a_bug_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_tune_encoder", lambda job, say: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweeps.run_try({**JOBS[0], "folder": str(tmp_path)})
    assert not finished(tmp_path)


def test_tries_that_all_have_ended_need_no_ray(tmp_path, monkeypatch):
    for job in JOBS[:2]:
        sweeps.run_try({**job, "folder": str(tmp_path)})
    monkeypatch.setattr(sweeps, "ray_session", None)
    assert [t["status"] for t in sweeps.run_jobs(JOBS[:2], tmp_path)] == ["finished"] * 2


def test_one_that_lags_behind_is_told_apart_from_one_that_failed(tmp_path, monkeypatch):
    class Idle:
        def fit(self):
            write_json(
                tmp_path / "tries" / f"{sweeps.fingerprint(JOBS[0]['settings'])}.json",
                {**sweeps._result(JOBS[0], "running", [{"valid_accuracy": 0.1}], 1.0)},
            )

    monkeypatch.setattr(sweeps, "_tuner", lambda *args: Idle())
    monkeypatch.setattr(sweeps, "ray_session", lambda address: __import__("contextlib").nullcontext())
    assert [t["status"] for t in sweeps.run_jobs(JOBS[:2], tmp_path, asha=True)] == ["stopped early"] * 2
    assert [t["status"] for t in sweeps.run_jobs(JOBS[:2], tmp_path)] == ["failed"] * 2


def test_two_sweeps_into_one_folder_the_second_is_refused(tmp_path):
    with (
        sweeps.folder_lock(tmp_path / "sweep"),
        pytest.raises(BertlabError, match="another process is working in this folder"),
    ):
        sweeps.run_jobs(JOBS[:1], tmp_path / "sweep")


def test_ray_is_started_quietly(monkeypatch):
    ray, asked = pytest.importorskip("ray"), {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with sweeps.ray_session():
        pass
    assert (
        asked["include_dashboard"] is False
        and asked["_node_ip_address"] == asked["dashboard_host"] == "127.0.0.1"
    )
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    asked.clear()
    with sweeps.ray_session("10.0.0.1:6379"):
        pass
    assert asked["address"] == "10.0.0.1:6379" and "num_cpus" not in asked


@pytest.mark.parametrize(
    "words, says",
    [
        (["T4"], "is no sweep of the study"),
        (["FT.1"], "needs a pre-trained model"),
        (["FT.2", "--model", "x", "--data", "default"], "Run FT.1"),
        (["P.4", "--scale", "huge"], "no scale is called"),
        (["FT.1", "--model", "nowhere", "--data", "default"], "no such folder"),
        (["P.4", "--tries", "0"], "tries is 0"),
    ],
)
def test_mistakes_cost_one_line(words, says, tmp_path, capsys):
    assert main(["sweep", *words, "--folder", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and says in told


def test_a_record_of_another_sweep_is_not_taken_for_this_one(tmp_path):
    write_json(
        tmp_path / "sweep_mini_P.4.json", {"kind": "sweep", "settings": "other", "history": [], "tries": []}
    )
    with pytest.raises(BertlabError, match="holds a sweep of other settings"):
        sweeps.run_sweep("P.4", corpus="messages", tries=2, folder=tmp_path)
