"Sweeps: stopped, killed or spread over machines they lose no run; what diverges or does not fit is a result."

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from helpers import assert_one_line

from bertlab.bpe import train_tokenizer
from bertlab.cli import main
from bertlab.core import cluster
from bertlab.core.files import BertlabError, read_json, write_json
from bertlab.data.labeled import LabeledTexts
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.finetuning import FinetuneConfig
from bertlab.mlm import MaskedLM, save_model
from bertlab.pretraining import PretrainConfig
from bertlab.study import sweeps
from bertlab.study.sweeps import ClassifierInputs, SearchInputs, SweepJob, run_jobs, run_one
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import DataConfig, prepare_data
from bertlab.training import OutOfMemoryError, TrainConfig

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e30)
HERE = Path(__file__).parent
QUIET = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    before = os.environ.get("BERTLAB_CACHE")
    os.environ["BERTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("BERTLAB_CACHE")
    os.environ |= {"BERTLAB_CACHE": before} if before else {}


def search(rates=RATES):
    "Pre-trainings of a toy encoder on JupyterLab's messages, one for each learning rate."
    data = DataConfig("messages", lang="en", merges=250)
    shape = EncoderConfig(d_model=64, heads=2, d_ff=128, layers=1, max_len=64)
    jobs = []
    for lr in rates:
        train = TrainConfig("adam", lr=lr, epochs=1, batch_size=32, evals_per_epoch=2, max_grad_norm=1e9)
        config = PretrainConfig(data, shape, train=train, eval_sentences=100)
        jobs.append(SweepJob({"lr": lr}, config))
    return SearchInputs(prepare_data(data, 64)), jobs


def classifiers(rates=RATES[:4], epochs=2, n=120):
    "Fine-tunings of a toy encoder, one for each learning rate."
    rng, words = np.random.default_rng(0), ("fire flood storm big red", "song lunch game soft blue")
    texts = [" ".join(rng.choice(words[i % 2].split(), size=7)) for i in range(n)]
    tokenizer = train_tokenizer(texts, 30)
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1))
    data = LabeledTexts(texts, np.arange(n) % 2, np.arange(n), ("ordinary", "disaster"))
    inputs = ClassifierInputs(encoder, tokenizer, data, np.arange(100), np.arange(100, 120))
    head, train = HeadConfig(n_filters=4), TrainConfig("adam", epochs=epochs, batch_size=20)
    configs = [FinetuneConfig(head, train=replace(train, lr=lr)) for lr in rates]
    return inputs, [SweepJob({"lr": c.train.lr}, c) for c in configs]


def sweep_main(kind, folder, options):
    "A sweep as a process of its own."
    try:
        run_jobs(*{"search": search, "classifiers": classifiers}[kind](), folder, **json.loads(options))
    except KeyboardInterrupt as e:
        print(e)
        sys.exit(130)


def start(kind, folder, env=None, **options):
    "Start `sweep_main` in a process group of its own."
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from test_sweeps import sweep_main; "
    code += "sweep_main(*sys.argv[1:])"
    words = [sys.executable, "-c", code, kind, str(folder), json.dumps(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | QUIET | (env or {}), start_new_session=True, **pipes)


def finished(folder):
    "File -> when it was written, of the runs that have come to an end."
    return {p: p.stat().st_mtime_ns for p in Path(folder).glob("runs/*.json")}


def outcomes(folder):
    "The results in a folder, without the time that they took."
    runs = [read_json(p) for p in sorted(Path(folder).glob("runs/*.json"))]
    return [{k: run[k] for k in ("settings", "status", "valid_loss", "history")} for run in runs]


def wait_for(condition, process, seconds=240):
    "Wait until something holds while a process runs."
    patience = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.05)


def descendants(process):
    "All processes that a process has started."
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def with_token(token):
    "The processes that carry a token in their environment, and their descendants (some hide theirs)."
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BERTLAB_TOKEN") == token:
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            pass
    return set(found)


def listening(processes):
    "The addresses that processes listen on."
    found = set()
    for process in processes:
        try:
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            pass
    return found


def alive(processes):
    "Those that still run."
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def assert_all_gone(processes, seconds=20):
    "All processes end soon."
    patience = time.monotonic() + seconds
    while alive(processes):
        assert time.monotonic() < patience, [p.cmdline() for p in alive(processes)]
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The results of the search, left alone, one run after the other."
    folder = tmp_path_factory.mktemp("alone") / "sweep"
    results = run_jobs(*search(), folder, workers=1)
    assert [r.status for r in results] == ["finished"] * 7 + ["diverged"]
    return folder


@pytest.mark.parametrize("options", [{"workers": 2}, {}], ids=["processes", "ray"])
def test_a_sweep_that_is_killed_and_run_again_loses_no_run(tmp_path, alone, options, monkeypatch):
    """It also listens on loopback only, ignores other clusters, and leaves no processes or files behind.

    Seen before: with a progress bar on a stream that cannot be pickled, as in pytest and Jupyter, Ray gave up.
    """
    if not options:
        pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    folder, folders = tmp_path / "sweep", set(Path("/tmp").glob("bertlab-*"))
    victim = start("search", folder, **options)
    wait_for(lambda: len(finished(folder)) >= 2, victim)
    children = descendants(victim)
    addresses = listening([psutil.Process(victim.pid), *children])
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert len(children) > 2 and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert bool(addresses) == (not options)  # Ray does listen
    assert_all_gone(children)
    before = finished(folder)
    assert 2 <= len(before) < 8
    run_jobs(*search(), folder, **options)
    assert outcomes(folder) == outcomes(alone)
    after = finished(folder)
    assert {p: after[p] for p in before} == before  # what was finished was not done twice
    assert {p.stat().st_mode & 0o777 for p in (folder,)} == {0o700}
    patience = time.monotonic() + 20  # the last process of Ray removes what it has written
    while left := set(Path("/tmp").glob("bertlab-*")) - folders:
        assert time.monotonic() < patience, left
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_stopped_goes_on(tmp_path, alone, number):
    folder = tmp_path / "sweep"
    victim = start("search", folder, workers=1 if number == signal.SIGHUP else 2)
    wait_for(lambda: len(finished(folder)) >= 2, victim)
    children = descendants(victim)
    os.kill(victim.pid, number)
    said, _ = victim.communicate(timeout=60)
    assert victim.returncode == 130 and "of 8 runs are done: type the command again" in said
    assert_all_gone(children)
    assert 2 <= len(finished(folder)) < 8
    run_jobs(*search(), folder, workers=1)
    assert outcomes(folder) == outcomes(alone)


COMMAND = """
import sys
from bertlab import cli
from bertlab.study import sweeps
sweeps.FINETUNE_GRID = {"n_filters": [100], "freeze": ["all"], "kernel_sizes": [[3, 4]], "dropout": [0.5],
                        "lr": [1e-3, 1e-4, 5e-5, 1e-5, 2e-3, 3e-3]}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "The folder of a tiny pre-trained model, with a table of labeled texts beside it."
    inputs, _ = classifiers(n=1000)
    folder = tmp_path_factory.mktemp("model")
    save_model(MaskedLM(inputs.encoder.config), inputs.tokenizer, folder / "model")
    labels = [inputs.data.names[i] for i in inputs.data.labels]
    table = pd.DataFrame({"text": inputs.data.texts, "label": labels}).drop_duplicates("text")
    table.to_csv(folder / "data.csv", index=False)
    return folder


@pytest.mark.parametrize("backend", [["--workers", "1"], []], ids=["one process", "ray"])
def test_ctrl_c_leaves_no_record_and_the_command_goes_on(tmp_path, model, backend):
    "Seen before: a record of 68 failed runs, taken for finished for ever."
    if not backend:
        pytest.importorskip("ray")
    env = os.environ | QUIET | {"BERTLAB_CACHE": str(tmp_path / "cache")}
    words = ["sweep", "FT.1", "--model", str(model), "--data", str(model / "data.csv")]
    words += ["--folder", str(tmp_path), *backend]
    command = [sys.executable, "-c", COMMAND, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    victim = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
    wait_for(lambda: list(tmp_path.glob("cache/sweeps/*/runs/*.json")), victim)
    children = descendants(victim)
    os.killpg(victim.pid, signal.SIGINT)  # as a terminal sends it: to all processes in the foreground
    _, said = victim.communicate(timeout=60)
    assert victim.returncode == 130 and "type the command again to go on" in said, said
    assert not list(tmp_path.glob("sweep_*.json"))
    assert_all_gone(children)
    again = subprocess.run([*command[:-2], "--workers", "2"] if backend else command, env=env, **pipes)
    assert again.returncode == 0, again.stderr
    record = read_json(tmp_path / "sweep_mini_FT.1.json")
    assert record["result"] == {"finished": 6} and len(record["runs"]) == 6


def test_one_process_and_two_give_the_same_results(tmp_path):
    inputs, jobs = classifiers()
    results = [run_jobs(inputs, jobs, tmp_path / str(n), workers=n) for n in (1, 2)]
    same = [[replace(r, seconds=0.0) for r in several] for several in results]
    assert same[0] == same[1] and {r.status for r in same[0]} == {"finished"}


def test_divergence_is_a_result_and_is_not_run_twice(tmp_path):
    inputs, jobs = search(RATES[-1:])
    [end] = run_jobs(inputs, jobs, tmp_path, workers=1)
    assert end.status == "diverged" and "not finite" in end.reason and end.valid_accuracy is None
    stamp = finished(tmp_path)
    assert run_jobs(None, jobs, tmp_path, workers=1) == [end] and finished(tmp_path) == stamp


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("a batch of 128 sentences", hint="Choose batch_size 64"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_lack_of_memory_is_a_result(error):
    end = run_one(Failing(error), search()[1][0])
    assert end.status == "out of memory" and end.reason == str(error)


class Failing:
    "Inputs of runs that fail."

    def __init__(self, error):
        self.error = error

    def run(self, config, report):
        raise self.error


def test_a_bug_is_no_result(tmp_path):
    jobs = classifiers()[1][:2]
    with pytest.raises(ZeroDivisionError):
        run_one(Failing(ZeroDivisionError("oh")), jobs[0])
    with pytest.raises(BertlabError, match=r"2 of 2 runs failed \(ZeroDivisionError: oh\)"):
        run_jobs(Failing(ZeroDivisionError("oh")), jobs, tmp_path, workers=1)
    assert not finished(tmp_path)


def test_one_failure_does_not_cost_the_other_runs(tmp_path):
    inputs, jobs = classifiers()
    broken = [*jobs[:2], replace(jobs[2], config=replace(jobs[2].config, freeze=5)), jobs[3]]
    with pytest.raises(
        BertlabError, match=r"1 of 4 runs failed .*the encoder has 1.*only these are done again"
    ):
        run_jobs(inputs, broken, tmp_path, workers=1)
    before = finished(tmp_path)
    assert len(before) == 3
    assert len(run_jobs(inputs, jobs, tmp_path, workers=1)) == 4
    assert before.items() <= finished(tmp_path).items()


def test_runs_that_all_have_ended_need_no_backend(tmp_path, monkeypatch):
    inputs, jobs = classifiers()
    run_jobs(inputs, jobs[:2], tmp_path, workers=1)
    monkeypatch.setattr(sweeps, "run_with_ray", lambda *args, **options: 1 / 0)
    assert [r.status for r in run_jobs(None, jobs[:2], tmp_path)] == ["finished"] * 2


@pytest.mark.parametrize(
    "content", ['{"status": "finished"}', "[]", "null", "{", "\x80\x04pickle", '{"settings": 1}']
)
def test_a_damaged_result_is_set_aside_and_made_again(tmp_path, content):
    inputs, jobs = classifiers()
    expected = outcomes(tmp_path) if run_jobs(inputs, jobs[:2], tmp_path, workers=1) else None
    expected = outcomes(tmp_path)
    path = min(tmp_path.glob("runs/*.json"))
    path.write_text(content, encoding="latin1")
    run_jobs(inputs, jobs[:2], tmp_path, workers=1)
    assert outcomes(tmp_path) == expected and path.with_name(path.name + ".damaged").read_bytes()


def test_results_of_other_inputs_are_not_taken(tmp_path):
    inputs, jobs = classifiers()
    run_jobs(inputs, jobs[:1], tmp_path, "one model", workers=1)
    run_jobs(inputs, jobs[:1], tmp_path, "another model", workers=1)
    assert len(finished(tmp_path)) == 2


def test_one_that_lags_behind_is_told_apart_from_one_that_failed(tmp_path, monkeypatch):
    def idle(work, inputs, jobs, save_result, **options):
        history = [{"valid_accuracy": 0.1}]
        for number, job in enumerate(jobs):
            result = asdict(sweeps._make_result(job, "running", history, 1.0))
            save_result(number, result, "stopped early" if options["asha"] else "failed")

    monkeypatch.setattr(sweeps, "run_with_ray", idle)
    jobs = classifiers()[1][:2]
    ended = run_jobs(None, jobs, tmp_path, asha=True)
    assert [(r.status, r.history) for r in ended] == [("stopped early", [{"valid_accuracy": 0.1}])] * 2
    with pytest.raises(BertlabError, match=r"2 of 2 runs failed \(its process died twice\)"):
        run_jobs(None, jobs, tmp_path, address="10.0.0.1:6379")


def test_two_sweeps_into_one_folder_the_second_is_refused(tmp_path):
    with (
        sweeps.folder_lock(tmp_path / "sweep"),
        pytest.raises(BertlabError, match="another process is working in this folder"),
    ):
        run_jobs(*classifiers(), tmp_path / "sweep", workers=1)


def test_an_interruption_says_how_many_are_done_also_without_a_bar(tmp_path, monkeypatch, capsys):
    "Seen before: 0 of 12, whatever was done, where TQDM_DISABLE is set."
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def stop_after_two(work, inputs, jobs, save_result, workers):
        for number, job in enumerate(jobs[:2]):
            save_result(number, asdict(sweeps.RunResult(job.settings, "finished")), "finished")
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_with_processes", stop_after_two)
    inputs, jobs = classifiers()
    for done in (2, 4):
        with pytest.raises((KeyboardInterrupt, SystemExit, BertlabError)) as caught:
            run_jobs(inputs, jobs, tmp_path, workers=1)
        assert f"{done} of 4 runs are done" in str(caught.value) + capsys.readouterr().err


def test_ray_is_started_quietly(monkeypatch):
    ray, asked = pytest.importorskip("ray"), {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options, **os.environ))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": "127.0.0.1"}])
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    with cluster.ray_session():
        assert asked["include_dashboard"] is False and asked["address"] == "local"
        assert asked["_node_ip_address"] == asked["dashboard_host"] == "127.0.0.1"
        assert asked["RAY_USAGE_STATS_ENABLED"] == "0" and len(asked["RAY_AUTH_TOKEN"]) == 64
        assert Path(asked["_temp_dir"]).parent.stat().st_mode & 0o777 == 0o700
    assert not Path(asked["_temp_dir"]).parent.exists() and "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": "192.0.2.7"}])
    with pytest.raises(BertlabError, match=r"Ray listens on 192\.0\.2\.7"), cluster.ray_session():
        pass
    asked.clear()
    monkeypatch.setattr(cluster.socket, "create_connection", lambda address, timeout: socket.socket())
    with cluster.ray_session("10.0.0.1:6379"):
        pass
    assert asked["address"] == "10.0.0.1:6379" and "num_cpus" not in asked


@pytest.mark.parametrize(
    "address, says",
    [
        ("local", "is no address of a Ray cluster"),
        ("head:port", "Give HOST:PORT"),
        ("127.0.0.1:99999", "Give HOST:PORT"),
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("ray://127.0.0.1:9", "no Ray cluster answers at ray://127.0.0.1:9"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(address, says, monkeypatch):
    "Seen before: three minutes of Ray's own messages for a cluster that was not there."
    monkeypatch.setattr(cluster, "watched_folder", lambda: 1 / 0)  # Ray is not asked
    with pytest.raises(BertlabError) as caught, cluster.ray_session(address):
        pass
    assert_one_line(caught, says)


@pytest.mark.parametrize(
    "words, says",
    [
        (["T4"], "is no sweep of the study"),
        (["FT.1"], "needs a pre-trained model"),
        (["FT.2", "--model", "x", "--data", "default"], "Run FT.1"),
        (["P.4", "--scale", "huge"], "no scale is called"),
        (["FT.1", "--model", "nowhere", "--data", "default"], "no such folder"),
        (["P.4", "--runs", "0"], "runs is 0"),
        (["P.4", "--runs", str(2**31)], "Choose 1 to 10,000"),
    ],
)
def test_mistakes_cost_one_line(words, says, tmp_path, capsys):
    assert main(["sweep", *words, "--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 2, "asha": True}, {"workers": 2, "address": "x"}]
)
def test_workers_do_without_ray(options, tmp_path):
    with pytest.raises(BertlabError, match=r"workers is 0|need Ray Tune"):
        run_jobs(*classifiers(), tmp_path, **options)


def test_a_record_of_another_sweep_is_not_taken_for_this_one(tmp_path):
    record = {"kind": "sweep", "config_fingerprint": "other", "history": [], "runs": []}
    write_json(tmp_path / "sweep_mini_P.4.json", record)
    with pytest.raises(BertlabError, match="holds a sweep of other settings"):
        sweeps.run_sweep("P.4", corpus="messages", runs=2, folder=tmp_path)


@pytest.mark.parametrize("runs", [None, 3, [3], [{}], [{"status": "finished"}]])
@pytest.mark.parametrize("row", ["FT.1", "FT.2"])
def test_a_damaged_record_of_a_sweep_is_one_line(tmp_path, model, capsys, monkeypatch, runs, row):
    "Seen before: a traceback, where the record had lost its runs."
    words = [
        "sweep",
        row,
        "--model",
        str(model),
        "--data",
        str(model / "data.csv"),
        "--folder",
        str(tmp_path),
    ]
    path, about = tmp_path / "sweep_mini_FT.1.json", {"result": {"finished": 1}}
    monkeypatch.setattr(sweeps, "fingerprint", lambda obj: "always this one")
    write_json(path, about | {"config_fingerprint": "always this one", "runs": runs})
    assert main([*words, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sweep_mini_FT.1.json: is not the record" in said


def test_a_search_does_not_read_the_record_of_the_grid(tmp_path, monkeypatch):
    (tmp_path / "sweep_mini_FT.1.json").write_text("{")
    monkeypatch.setattr(sweeps, "run_jobs", lambda *args, **options: [])
    record = sweeps.run_sweep("P.4", corpus="messages", runs=2, folder=tmp_path)
    assert record["row_id"] == "P.4"


def test_small_settings_are_printed_as_they_are(monkeypatch, capsys):
    "Seen before: learning rates of 1e-4 and 5e-5 were both 0.000."
    result = {"status": "finished", "train_accuracy": 0.5, "valid_accuracy": 0.5, "valid_loss": 0.00001}
    runs = [
        {"settings": {"lr": lr, "kernel_sizes": [3, 4], "freeze": "all"}, **result} for lr in (1e-3, 5e-5)
    ]
    monkeypatch.setattr(
        sweeps, "run_sweep", lambda *args, **options: {"runs": runs, "result": {"finished": 2}}
    )
    assert main(["sweep", "FT.1"]) == 0
    printed = capsys.readouterr().out
    assert "| 0.001 |" in printed and "| 5e-05 |" in printed


def test_a_sweep_whose_record_could_not_be_written_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "run_jobs", lambda *args, **options: 1 / 0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BertlabError, match="cannot be written to"):
        sweeps.run_sweep("P.4", corpus="messages", runs=2, folder=tmp_path / "new")


@pytest.fixture
def ray_cluster(tmp_path):
    "Start a Ray cluster of a head that does no runs, and a worker for which a folder is empty."
    pytest.importorskip("ray")
    if not sys.platform.startswith("linux") or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs mount namespaces")
    env = os.environ | QUIET | {"RAY_USAGE_STATS_ENABLED": "0"}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "BERTLAB_TOKEN": str(tmp_path),
    }
    ray, temp = str(Path(sys.executable).with_name("ray")), tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()

    def begin(hidden):
        head = [ray, "start", "--head", f"--port={port}", "--num-cpus=0"]
        head += [f"--temp-dir={temp}", "--include-dashboard=false", "--disable-usage-stats"]
        subprocess.run(head, env=env, check=True, capture_output=True)
        join = f"{ray} start --address=127.0.0.1:{port} --num-cpus=2"
        worker = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {hidden} && {join}"]
        cache = {"BERTLAB_CACHE": str(tmp_path / "worker-cache")}
        subprocess.run(worker, env=env | cache, check=True, capture_output=True)
        return {k: v for k, v in env.items() if k.startswith("RAY_AUTH")}, f"127.0.0.1:{port}"

    yield begin
    for process in with_token(str(tmp_path)):
        process.kill()
    shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_needs_no_common_folder(tmp_path, ray_cluster):
    "Seen before: all runs finished on the worker, their files stayed there, and the record said 72 failed."
    ours = tmp_path / "ours"
    ours.mkdir()
    env, address = ray_cluster(hidden=ours)
    env["BERTLAB_CACHE"] = str(ours / "cache")
    sweep = start("search", ours / "sweep", env, address=address)
    assert sweep.wait(timeout=280) == 0, sweep.stderr.read()
    runs = [read_json(p) for p in (ours / "sweep" / "runs").glob("*.json")]
    assert sorted(run["status"] for run in runs) == ["diverged"] + ["finished"] * 7
    sweep = start("classifiers", ours / "fine", env, address=address)
    assert sweep.wait(timeout=280) == 0, sweep.stderr.read()
    runs = [read_json(p) for p in (ours / "fine" / "runs").glob("*.json")]
    assert [run["status"] for run in runs] == ["finished"] * 4
    assert {str(p) for p in tmp_path.rglob("*.json")} == {str(p) for p in ours.rglob("*.json")}


def test_a_node_without_bertlab_is_named_before_the_first_run(tmp_path, ray_cluster):
    env, address = ray_cluster(hidden=Path(sweeps.__file__).parents[1])
    sweep = start("search", tmp_path / "sweep", env, address=address)
    assert sweep.wait(timeout=280) == 1
    said = sweep.stderr.read()
    assert "does not have this bertlab" in said and "on every node" in said
    assert not list(tmp_path.rglob("*.json"))
