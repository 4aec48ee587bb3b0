"""What only a real GPU can show: kernels beside the reference, exact resume, that training learns, compilers, nccl.

Needs torch, bertlab and pytest. Without a GPU all of it is skipped; `BERTLAB_GPU_TESTS=cpu` rehearses it on the CPU.
"""

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertlab import training
from bertlab.attention import packed_attention, packed_attention_reference
from bertlab.bpe import chars_per_token, train_tokenizer
from bertlab.data.labeled import LabeledTexts
from bertlab.decoder import CausalLM, CausalLMTask, Transformer, beam_search, generate, greedy
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import FinetuneConfig, finetune
from bertlab.masking import MaskingConfig, mask_batch
from bertlab.mlm import MaskedLM, mlm_loss
from bertlab.packing import Layout
from bertlab.pretraining import MLMTask, PretrainConfig, unigram_scores
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store
from bertlab.training import TrainConfig, fit, make_optimizers

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products; read only once
WANTED = os.environ.get("BERTLAB_GPU_TESTS") or ("cuda" if torch.cuda.is_available() else "")
pytestmark = pytest.mark.skipif(not WANTED, reason="needs a GPU")

RNG = np.random.default_rng(0)
OBJECTS, KINDS = (
    [f"{a}{b}" for a in ("ar", "ta", "li") for b in ("ray", "ble", "st")],
    ("sorted", "empty", "full"),
)
SENTENCES = [
    f"the {thing} number {i % 13} is {KINDS[(j + i) % 3]} and the {thing} has {i % 13} rows of {KINDS[(j + i) % 3]}"
    for i in range(60)
    for j, thing in enumerate(OBJECTS)
]  # each word that varies occurs twice, so that the context tells what is masked
TEXTS = [text if i % 3 else text.split(" and ")[0] for i, text in enumerate(SENTENCES)]
TOKENIZER = train_tokenizer(TEXTS, 60)
SHAPE = EncoderConfig(TOKENIZER.get_vocab_size(), d_model=64, heads=2, d_ff=128, layers=2, max_len=64)
STORE = in_memory_store(TEXTS, TOKENIZER)
LAYOUTS = {
    "one": [7],
    "equal": [16] * 5,
    "short": [1, 3, 2, 1, 9],
    "mixed": [5, 128, 1, 37, 64, 2, 100],
    "long": [256, 255],
}


@pytest.fixture
def device():
    "The GPU; or the CPU, in a rehearsal."
    return torch.device(WANTED)


@pytest.fixture
def deterministic():
    "Sums in a fixed order, so that two runs can agree in every bit."
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.double().cpu(), wanted.double().cpu()
    assert torch.isfinite(found).all()
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("heads, dk", [(2, 32), (4, 64), (8, 128)])
def test_packed_attention_is_the_reference(device, dtype, bound, causal, lengths, heads, dk):
    torch.manual_seed(sum(lengths))
    qkv = torch.randn(3, sum(lengths), heads, dk).to(dtype)
    direction = torch.randn(sum(lengths), heads, dk)
    results = []
    for place, kind in ((torch.device("cpu"), torch.float64), (device, dtype)):
        layout = Layout.from_lengths(lengths, place)
        inputs = [x.to(place, kind).requires_grad_() for x in qkv]
        if kind == torch.float64:
            out = packed_attention_reference(*inputs, layout, layout, causal)[0]
        else:
            out = packed_attention(*inputs, layout, layout, causal)
        out.backward(direction.to(place, kind))
        results.append([out.detach(), *(x.grad for x in inputs)])
    for wanted, found in zip(*results):
        if wanted.norm() > 1e-6:  # a single key: its score has no gradient
            assert relative_error(found, wanted) < bound


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_cross_attention_is_the_reference(device, dtype, bound):
    torch.manual_seed(0)
    few, many = [1, 4, 2, 1], [9, 3, 30, 1]
    results = []
    q, k, v = (torch.randn(n, 4, 32).to(dtype) for n in (sum(few), sum(many), sum(many)))
    for place, kind in ((torch.device("cpu"), torch.float64), (device, dtype)):
        layouts = [Layout.from_lengths(x, place) for x in (few, many)]
        inputs = [x.to(place, kind).requires_grad_() for x in (q, k, v)]
        attend = packed_attention if kind == dtype else packed_attention_reference
        out = attend(*inputs, *layouts)
        out = out if kind == dtype else out[0]
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for wanted, found in zip(*results):
        assert relative_error(found, wanted) < bound


@pytest.mark.parametrize("precision, bound", [("fp32", 2e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("norm, activation", [("pre", "swish"), ("post", "gelu")])
def test_a_step_of_the_model_is_that_of_the_cpu(device, precision, bound, norm, activation):
    shape, results = replace(SHAPE, norm=norm, activation=activation), []
    masked = mask_batch(STORE.batch(np.arange(0, 200, 3)), shape.vocab_size, MaskingConfig(), 0, 0)
    for place, half in ((torch.device("cpu"), False), (device, precision == "bf16")):
        torch.manual_seed(0)
        model = MaskedLM(shape).to(place)
        (optimizer,) = make_optimizers(model, "adam", 1e-3)
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
            loss = mlm_loss(model(masked.to(place)), masked.targets.to(place))
        loss.backward()
        grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        results.append([loss.detach(), torch.cat([g.flatten().cpu() for g in grads])])
    for wanted, found in zip(*results):
        assert relative_error(found, wanted) < bound


def test_masks_do_not_depend_on_the_device(device):
    batch = STORE.batch(np.arange(100))
    here, there = (mask_batch(b, SHAPE.vocab_size, MaskingConfig(), 3, 1) for b in (batch, batch.to(device)))
    assert torch.equal(here.inputs, there.inputs.cpu()) and torch.equal(here.targets, there.targets.cpu())


def test_fp32_generation_is_that_of_the_cpu(device):
    written = []
    for place in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = Transformer(SHAPE).eval().to(place)
        batch = STORE.batch(np.arange(8)).to(place)
        most = torch.tensor([3, 4, 5, 6, 12, 12, 12, 12], device=place)
        with torch.no_grad():
            greedily = generate(model, model.init_cache(batch.ids, batch.layout), most, greedy)
            beams, scores = beam_search(model, model.init_cache(batch.ids, batch.layout, 3), most, 3)
        written.append((greedily, beams, scores.cpu()))
    torch.testing.assert_close(written[0][2], written[1][2], rtol=1e-2, atol=1e-2)
    same = sum(a == b for i in (0, 1) for a, b in zip(written[0][i], written[1][i]))
    assert same >= 14  # of 16: a rounding may decide between two tokens


# ---------------------------------------------------------------- training


def task_for(device, precision="fp32", dropout=0.0, optimizer="adam", epochs=1.0, **train):
    config = PretrainConfig(
        encoder=replace(SHAPE, dropout=dropout),
        train=TrainConfig(optimizer, lr=2e-3, precision=precision, epochs=epochs, batch_size=32, **train),
        eval_sentences=100,
    )
    torch.manual_seed(0)
    model = MaskedLM(config.encoder).to(device)
    return MLMTask(model, STORE, STORE, TOKENIZER, config), config.train


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_no_training_step_waits(device, monkeypatch, precision, dropout, optimizer):
    "With torch's own alarm: an operation for which the host must wait raises."
    real = training._train_step

    def watched(run, *args):
        steady = run.state.step > 2 and run.state.step % 20
        if device.type == "cuda" and steady:
            torch.cuda.set_sync_debug_mode("error")
        try:
            real(run, *args)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "_train_step", watched)
    task, train = task_for(device, precision, dropout, optimizer)
    history = fit(task, train)
    assert np.isfinite(history[-1]["valid_loss"])


@pytest.mark.parametrize("precision, dropout", [("fp32", 0.0), ("bf16", 0.0), ("bf16", 0.1)])
def test_a_run_that_is_stopped_ends_in_the_same_bits(device, deterministic, tmp_path, precision, dropout):
    ends = []
    for folder, stops in (("whole", []), ("again", []), ("parts", [0.5, 1.2])):
        for epochs in [*stops, 1.5]:
            task, train = task_for(device, precision, dropout, epochs=1.5)
            fit(task, replace(train, epochs=epochs), tmp_path / folder)
        ends.append([p.detach().cpu() for p in task.model.parameters()])
    whole, again, parts = ends
    assert all(map(torch.equal, whole, again)), "two runs differ: the device sums in no fixed order"
    assert all(map(torch.equal, whole, parts))


def test_a_minute_of_training_learns(device):
    "Until it has seen through the text, for a minute at most."
    minutes, started = (1.0 if device.type == "cuda" else 0.4), time.monotonic()
    task, train = task_for(device, "bf16", epochs=1000.0, schedule="constant")
    unigram, best = unigram_scores(task)["loss"], []
    evaluate = task.evaluate

    class EnoughError(Exception):
        pass

    def watched():
        scores = evaluate()
        best.append(scores["loss"])
        if scores["loss"] < unigram / 3 or time.monotonic() - started > 60 * minutes:
            raise EnoughError
        return scores

    task.evaluate = watched
    with pytest.raises(EnoughError):
        fit(task, train)
    assert min(best) < unigram / 2, (best, unigram)


@pytest.mark.parametrize("freeze", ["all", 1, "none"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_classifiers_learn(device, freeze, precision):
    labels = np.array(["empty" in text for text in TEXTS]).astype(np.int64)
    data = LabeledTexts(TEXTS, labels, np.arange(len(TEXTS)), ("other", "empty"))
    rows = np.random.default_rng(0).permutation(len(TEXTS))
    train = TrainConfig("adam", lr=3e-3, precision=precision, epochs=6, batch_size=32)
    torch.manual_seed(0)
    encoder = MaskedLM(SHAPE).encoder.to(device)
    config = FinetuneConfig(HeadConfig(n_filters=16), freeze, train=train)
    done = finetune(encoder, TOKENIZER, data, rows[:400], rows[400:], config)
    assert (done.probabilities.argmax(1) == labels[rows[400:]]).mean() > 0.9


def test_a_causal_model_learns(device):
    torch.manual_seed(0)
    chars = chars_per_token(TOKENIZER).to(device)
    task = CausalLMTask(CausalLM(SHAPE).to(device), STORE, STORE, chars, 32)
    history = fit(task, TrainConfig(lr=3e-3, precision="bf16", epochs=4))
    assert history[-1]["valid_loss"] < 0.6 * history[0]["train_loss"]


# ---------------------------------------------------------------- compilers, several GPUs


def test_compiled_it_computes_the_same_and_once_for_all_batches(device):
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    model = MaskedLM(SHAPE).to(device)
    compiled = MaskedLM(SHAPE).to(device)
    compiled.load_state_dict(model.state_dict())
    torch._dynamo.reset()
    compiled.compile(dynamic=True, backend="inductor" if device.type == "cuda" else "aot_eager")
    graphs = []
    for i in range(6):
        masked = mask_batch(
            STORE.batch(np.arange(i, 60 + 7 * i)), SHAPE.vocab_size, MaskingConfig(), 0, i
        ).to(device)
        losses = []
        for m in (model, compiled):
            with torch.autocast(device.type, torch.bfloat16):
                loss = mlm_loss(m(masked), masked.targets)
            loss.backward()
            losses.append(loss.detach())
        assert relative_error(losses[1], losses[0]) < 5e-3
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[1]
    grads = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, compiled)]
    assert F.cosine_similarity(*(g.double() for g in grads), dim=0) > 0.99


WORKER = """
    import json, sys
    from pathlib import Path
    from bertlab.core.distributed import get_rank, process_group
    from bertlab.encoder import EncoderConfig
    from bertlab.pretraining import PretrainConfig, pretrain
    from bertlab.token_store import DataConfig
    from bertlab.training import TrainConfig

    text, out = sys.argv[1:]
    config = PretrainConfig(
        DataConfig(text, merges=60),
        EncoderConfig(d_model=64, heads=2, d_ff=128, layers=2, max_len=64),
        train=TrainConfig(lr=2e-3, epochs=2, batch_size=30, evals_per_epoch=2),
        eval_sentences=20,
    )
    with process_group():
        record = pretrain(config, out)
        if get_rank() == 0:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record["history"]]
            Path(out, "told.json").write_text(json.dumps(rows))
"""


def test_two_processes_have_the_curve_of_one(device, tmp_path):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    (tmp_path / "text.txt").write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf8")
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER), encoding="utf8")
    env = os.environ | {"BERTLAB_CACHE": str(tmp_path / "cache"), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        words = [sys.executable, *launcher, str(tmp_path / "worker.py"), str(tmp_path / "text.txt"), name]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "told.json").read_text()) for name in ("one", "two"))
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)
