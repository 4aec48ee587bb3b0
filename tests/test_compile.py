"The compiled model: the same numbers but for rounding, resumable, and a plain word where there is no compiler."

import shutil
from dataclasses import replace

import pytest
import torch

from bertlab import pretraining
from bertlab.core.files import BertlabError
from bertlab.core.precision import bf16_weights, product_weights
from bertlab.encoder import EncoderConfig
from bertlab.mlm import MaskedLM, load_model
from bertlab.pretraining import PretrainConfig, pretrain
from bertlab.token_store import DataConfig
from bertlab.training import TrainConfig

CORPUS = "\n".join(
    f"the {thing} number {i} is {kind} and has {i} rows"
    for i in range(12)
    for thing in ("array", "table", "list", "matrix")
    for kind in ("sorted", "empty", "full")
)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "corpus.txt").write_text(CORPUS)
    encoder = EncoderConfig(d_model=16, heads=2, d_ff=16, layers=2, max_len=64, dropout=0.1)
    train = TrainConfig(batch_size=16, epochs=1, precision="bf16", lr=3e-3)
    return PretrainConfig(DataConfig(str(tmp_path / "corpus.txt"), merges=40), encoder, train=train)


def test_a_compiled_run_is_the_same_run(config, tmp_path, monkeypatch):
    plain = pretrain(config, tmp_path / "plain")
    compiled = []
    monkeypatch.setattr(  # the compiler's front end; what it would build takes a minute
        pretraining,
        "compile_model",
        lambda model: (compiled.append(model), model.compile(dynamic=True, backend="aot_eager")),
    )
    record = pretrain(config, tmp_path / "compiled", compile=True)
    assert len(compiled) == 1 and (plain["compiled"], record["compiled"]) == (False, True)
    assert record["result"]["loss"] == pytest.approx(plain["result"]["loss"], rel=0.01)
    model, _ = load_model(tmp_path / "compiled" / "model")
    assert model.state_dict().keys() == load_model(tmp_path / "plain" / "model")[0].state_dict().keys()
    longer = replace(config, train=replace(config.train, epochs=2))
    assert pretrain(longer, tmp_path / "compiled")["history"][0] == record["history"][0]  # either goes on


def test_without_a_compiler_one_line_says_so(config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BertlabError, match=r"needs a C\+\+ compiler"):
        pretrain(config, tmp_path / "run", compile=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_rounded_copies_carry_gradients_and_leave_tables_alone(frozen):
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(50, d_model=16, heads=2, d_ff=16, layers=2))
    model.encoder.layers[0].requires_grad_(not frozen)
    weights, copies = product_weights(model), bf16_weights(model)
    assert weights.keys() == copies.keys() and "encoder.embedding.weight" not in weights
    assert any(".0." in name for name in weights) != frozen and not any("norm" in name for name in weights)
    for name, copy in copies.items():
        assert copy.dtype == torch.bfloat16 and torch.equal(copy, weights[name].bfloat16())
    used = "encoder.layers.1.ff.linear1.weight"
    (copies[used].float() * 3).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name == used)
    assert weights[used].grad.dtype == torch.float32 and (weights[used].grad == 3).all()
