"""Two gloo processes on the CPU, started by torchrun: the loss curve of one, also when stopped in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import toy_lines
from safetensors.torch import load_file

from bertlab.encoder import EncoderConfig
from bertlab.pretraining import PretrainConfig, pretrain
from bertlab.token_store import DataConfig, prepare_data
from bertlab.training import TrainConfig

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--no-python",
    "bertlab",
]
ENCODER = {"d_model": 16, "heads": 2, "d_ff": 32, "layers": 1}
TRAIN = {"epochs": 2, "evals_per_epoch": 3, "lr": 0.01}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distributed")
    (workdir / "text.txt").write_text("\n".join(toy_lines()), encoding="utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTLAB_CACHE", str(workdir / "cache"))
        yield workdir


@pytest.fixture(scope="module")
def config(workdir):
    "A config whose last batch has a single sentence, so that the second process gets none of it."
    data = DataConfig(str(workdir / "text.txt"), merges=40)
    config = PretrainConfig(data, EncoderConfig(**ENCODER), eval_sentences=30)
    sentences = len(prepare_data(data, config.encoder.max_len).train)
    size = next(n for n in range(4, sentences) if sentences % n == 1)
    return replace(config, train=TrainConfig(**TRAIN, batch_size=size))


def command(config, out):
    settings = {
        "corpus": config.data.corpus,
        "merges": 40,
        "eval_sentences": 30,
        **ENCODER,
        **TRAIN,
        "batch_size": config.train.batch_size,
        "out": out,
    }
    return [
        *TORCHRUN,
        "pretrain",
        *(str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)),
    ]


def start(config, out, words=None, **where):
    "Start a run of two processes; or, with `words`, something else in the same environment."
    env = os.environ | {
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    env |= where.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words or command(config, out), env=env, **pipes, **where)


def start_nodes(config, folder, texts):
    "Start a run on two nodes, each with its own text, cache and current folder; only the first sees `out`."
    port, nodes = free_port(), []
    for rank, text in enumerate(texts):
        node = folder / f"node{rank}"
        node.mkdir(parents=True, exist_ok=True)
        (node / "text.txt").write_text(text, encoding="utf8")
        here = replace(config, data=replace(config.data, corpus="text.txt"))
        words = command(here, folder / "out" if rank == 0 else "out")[len(TORCHRUN) :]
        env = {"BERTLAB_CACHE": str(node / "cache")} | {  # as torchrun sets them
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "two nodes",
        }
        nodes.append(start(config, None, [sys.executable, "-m", "bertlab", *words], cwd=node, env=env))
    return nodes


def wait_for_checkpoint(run, process):
    while not list(run.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.01)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def history(run):
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in json.loads((run / "record.json").read_text())["history"]
    ]


@pytest.fixture(scope="module")
def ddp_run(workdir, config):
    "A run of two processes; where that is possible, in a network that has only the loopback address."
    words, apart = command(config, workdir / "ddp"), ["unshare", "-rn", "sh", "-c"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*apart, "ip link set lo up"], capture_output=True).returncode
    ):
        words = [*apart, 'ip link set lo up; exec "$@"', "sh", *words]
    process = start(config, workdir / "ddp", words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("BERT") == 1  # one of the two speaks
    return workdir / "ddp"


def test_two_processes_have_the_curve_of_one(workdir, config, ddp_run):
    pretrain(config, workdir / "one")
    assert json.loads((ddp_run / "record.json").read_text())["world_size"] == 2
    assert len(history(ddp_run)) == 6
    for ours, theirs in zip(history(ddp_run), history(workdir / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (ddp_run, workdir / "one"))
    for name, tensor in weights.items():
        if name.endswith(
            "in_proj_bias"
        ):  # the keys' part moves all scores alike: its gradient is rounding, which Adam makes large
            tensor, expected[name] = (x.chunk(3)[2] for x in (tensor, expected[name]))
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


def test_stopped_and_started_again_it_ends_the_same(workdir, config, ddp_run):
    process = start(config, workdir / "stopped")
    wait_for_checkpoint(workdir / "stopped", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    assert (
        list((workdir / "stopped").glob("checkpoints/step-*"))
        and not (workdir / "stopped" / "record.json").exists()
    )
    again = start(config, workdir / "stopped")
    assert again.wait() == 0, again.stderr.read()
    assert history(workdir / "stopped") == history(ddp_run)
    same = [(run / "model" / "model.safetensors").read_bytes() for run in (workdir / "stopped", ddp_run)]
    assert same[0] == same[1]


def test_nodes_need_no_common_folder(workdir, config, ddp_run):
    "Seen before: after a stop the second node began anew, and the two trained two different models as one."
    text, folder = (workdir / "text.txt").read_text(encoding="utf8"), workdir / "nodes"
    nodes = start_nodes(config, folder, [text, text])
    wait_for_checkpoint(folder / "out", nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    assert all(node.wait(timeout=300) for node in nodes) and not (folder / "out" / "record.json").exists()
    assert list((folder / "out").glob("checkpoints/step-*"))
    for node in start_nodes(config, folder, [text, text]):
        assert node.wait(timeout=300) == 0, node.stderr.read()
    assert history(folder / "out") == history(ddp_run)
    same = [(run / "model" / "model.safetensors").read_bytes() for run in (folder / "out", ddp_run)]
    assert same[0] == same[1]
    assert sorted(p.name for p in (folder / "node1").iterdir()) == ["cache", "text.txt"]


def test_a_node_with_another_text_is_refused(workdir, config):
    text = (workdir / "text.txt").read_text(encoding="utf8")
    nodes = start_nodes(config, workdir / "other", [text, text.replace("sorted", "broken")])
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert all(node.returncode for node in nodes)
    lines = [[line for line in err.splitlines() if line.startswith("bertlab:")] for err in said]
    assert len(lines[1]) == 1 and "process 1 has another corpus than the main process (" in lines[1][0]
    assert len(lines[0]) <= 1 and all("another process of this run has ended" in line for line in lines[0])
    assert not list((workdir / "other").rglob("model.safetensors"))
