"""Two gloo processes on the CPU, started by torchrun: the loss curve of one, also when stopped in between."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
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
    things, states = (
        ("array", "figure", "index", "thread", "tensor"),
        ("sorted", "drawn", "empty", "locked", "copied"),
    )
    lines = [f"the {thing} number {i} is {state}" for i in range(16) for thing in things for state in states]
    (workdir / "text.txt").write_text("\n".join(lines), encoding="utf8")
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


def start(config, out):
    env = os.environ | {
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        command(config, out), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def history(run):
    return [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in json.loads((run / "record.json").read_text())["history"]
    ]


@pytest.fixture(scope="module")
def ddp_run(workdir, config):
    process = start(config, workdir / "ddp")
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
    while not list((workdir / "stopped").glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.01)
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
