"""Two gloo processes on the CPU, started by torchrun: the loss curve of one process, and a run that can be stopped and goes on."""

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

from bertlab.pretraining import PretrainConfig, prepare_data, pretrain
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
SHAPE = {"merges": 40, "d_model": 16, "heads": 2, "d_ff": 32, "layers": 1, "eval_sentences": 30}
TRAIN = {"epochs": 2, "evals_per_epoch": 3, "lr": 0.01}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    here = tmp_path_factory.mktemp("distributed")
    things, states = (
        ("array", "figure", "index", "thread", "tensor"),
        ("sorted", "drawn", "empty", "locked", "copied"),
    )
    lines = [f"the {thing} number {i} is {state}" for i in range(16) for thing in things for state in states]
    (here / "text.txt").write_text("\n".join(lines), encoding="utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTLAB_CACHE", str(here / "cache"))
        yield here


@pytest.fixture(scope="module")
def config(here):
    "A config whose last batch has a single sentence, so that the second process gets none of it."
    config = PretrainConfig(corpus=str(here / "text.txt"), **SHAPE)
    sentences = len(prepare_data(config).train)
    size = next(n for n in range(4, sentences) if sentences % n == 1)
    return replace(config, train=TrainConfig(**TRAIN, batch_size=size))


def command(config, out):
    settings = SHAPE | TRAIN | {"corpus": config.corpus, "out": out, "batch_size": config.train.batch_size}
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
def two(here, config):
    process = start(config, here / "two")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("BERT") == 1  # one of the two speaks
    return here / "two"


def test_two_processes_have_the_curve_of_one(here, config, two):
    pretrain(config, here / "one")
    assert json.loads((two / "record.json").read_text())["world_size"] == 2
    assert len(history(two)) == 6
    for ours, theirs in zip(history(two), history(here / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (two, here / "one"))
    for name, tensor in weights.items():
        if name.endswith(
            "in_proj_bias"
        ):  # the keys' part moves all scores alike: its gradient is rounding, which Adam makes large
            tensor, expected[name] = (x.chunk(3)[2] for x in (tensor, expected[name]))
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


def test_stopped_and_started_again_it_ends_the_same(here, config, two):
    process = start(config, here / "stopped")
    while not list((here / "stopped").glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    assert (
        list((here / "stopped").glob("checkpoints/step-*"))
        and not (here / "stopped" / "record.json").exists()
    )
    again = start(config, here / "stopped")
    assert again.wait() == 0, again.stderr.read()
    assert history(here / "stopped") == history(two)
    same = [(run / "model" / "model.safetensors").read_bytes() for run in (here / "stopped", two)]
    assert same[0] == same[1]
