"What would happen on a GPU: the real code on a CPU that pretends to be one (see pretended_gpu.py)."

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pretended_gpu import DeviceMismatch, PretendedGPU

from bertlab import training
from bertlab.bench import training as races
from bertlab.bpe import chars_per_token, train_tokenizer
from bertlab.core.files import fingerprint
from bertlab.data.labeled import LabeledTexts
from bertlab.data.parallel import EXAMPLE_PAIRS
from bertlab.decoder import CausalLM, CausalLMTask, Transformer, beam_search, generate, greedy
from bertlab.encoder import EncoderConfig
from bertlab.finetuning import FinetuneConfig, finetune
from bertlab.masking import MaskingConfig
from bertlab.mlm import MaskedLM, evaluate_mlm, fill_mask, save_model
from bertlab.study.adaptation import continue_pretraining
from bertlab.study.variants import VariantConfig
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import PretrainData, in_memory_store
from bertlab.training import TrainConfig, fit
from bertlab.translation import PairStore, PreparedPairs, TranslationConfig, TranslationTask, translate

WORDS = (
    "the of a matrix is an array with rows and columns that holds values for each key in this table".split()
)
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(3, 12))) for _ in range(160)]
TOKENIZER = train_tokenizer(TEXTS, 50)
SHAPE = EncoderConfig(d_model=16, heads=2, d_ff=16, layers=2, max_len=64)
FULL_SHAPE = replace(SHAPE, vocab_size=TOKENIZER.get_vocab_size())
STORE = in_memory_store(TEXTS, TOKENIZER)
DATA = PretrainData(TOKENIZER, STORE, STORE, {"name": "words", "options": {}}, False)
STEADY = 2  # steps before counting: the first ones build what the others reuse


@pytest.fixture
def gpu():
    with PretendedGPU() as pretended:
        yield pretended


@pytest.fixture
def steady_waits(gpu, monkeypatch):
    "Run a training and return where its steady steps wait for the device."
    real, count = training._train_step, [0]

    def step(*args):
        if count[0] == STEADY:
            gpu.reset()
        gpu.recording = count[0] % 20 != 0  # every 20th step reads whether the loss is finite
        real(*args)
        gpu.recording = False  # evaluation may read what it adds up
        count[0] += 1

    monkeypatch.setattr(training, "_train_step", step)

    def run(work) -> dict:
        count[0] = 0
        work()
        gpu.recording = True
        return dict(gpu.waits)

    return run


def task_for(config: VariantConfig):
    torch.manual_seed(0)
    return config.build_task(config.build_model(TOKENIZER.get_vocab_size()).to("cuda"), DATA)


@pytest.mark.parametrize(
    "model, precision, dropout, optimizer",
    [
        ("tied", "bf16", 0.0, "adam"),
        ("tied", "fp32", 0.0, "adamw"),
        ("tied", "bf16", 0.1, "muon"),
        ("tied", "fp32", 0.1, "adam"),
        ("untied", "bf16", 0.0, "adam"),
        ("torch", "fp32", 0.0, "adam"),
        ("torch", "bf16", 0.1, "adamw"),
    ],
)
def test_a_training_step_never_waits(gpu, steady_waits, model, precision, dropout, optimizer):
    train = TrainConfig(optimizer, precision=precision, batch_size=16, epochs=0.5)
    config = VariantConfig(encoder=replace(SHAPE, dropout=dropout), train=train, model=model)
    task = task_for(config)
    assert not steady_waits(lambda: fit(task, train)), gpu.report()


def test_a_wait_that_is_put_in_is_found(gpu, steady_waits):
    train = TrainConfig(batch_size=16, epochs=0.5)
    task = task_for(VariantConfig(encoder=SHAPE, train=train))
    real = task.loss

    def waiting_loss(batch, epoch):
        loss, sums = real(batch, epoch)
        loss.item()
        return loss, sums

    task.loss = waiting_loss
    assert steady_waits(lambda: fit(task, train))


def test_pretraining_with_evaluation_resume_and_filled_masks(gpu, tmp_path):
    train = TrainConfig(batch_size=16, epochs=1)
    config = VariantConfig(encoder=SHAPE, train=train)
    first = task_for(config)
    history = fit(first, train, tmp_path)
    again = task_for(config)
    assert fit(again, train, tmp_path) == history  # read from the checkpoint
    assert fingerprint(history) and fill_mask(again.model, TOKENIZER, "the [MASK] of a matrix")
    assert evaluate_mlm(again.model, again.valid_batches, again.chars_per_token)["loss"] > 0


@pytest.mark.parametrize("freeze", ["all", 1, "none"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_finetuning_never_waits(gpu, steady_waits, freeze, precision):
    data = LabeledTexts(TEXTS, np.arange(160) % 2, np.arange(160), ("a", "b"))
    train = TrainConfig("adam", precision=precision, epochs=2, batch_size=32)
    config = FinetuneConfig(HeadConfig(n_filters=4), freeze, train=train)
    rows = np.arange(120), np.arange(120, 160)
    done = []
    encoder = MaskedLM(FULL_SHAPE).encoder.to("cuda")
    waits = steady_waits(lambda: done.append(finetune(encoder, TOKENIZER, data, *rows, config)))
    assert not waits, gpu.report()
    assert done[0].probabilities.shape == (40, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generation_is_the_same_on_both_devices(gpu, precision):
    torch.manual_seed(0)
    there, here = Transformer(FULL_SHAPE).to("cuda").eval(), Transformer(FULL_SHAPE).eval()
    here.load_state_dict({name: weight.cpu() for name, weight in there.state_dict().items()})
    written = {}
    for device, model in (("cpu", here), ("cuda", there)):
        batch = in_memory_store(TEXTS[:6], TOKENIZER).batch(np.arange(6)).to(device)
        most = torch.full((6,), 5, device=device)
        half = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        with torch.no_grad(), half:
            written[device] = [
                generate(model, model.init_cache(batch.ids, batch.layout), most, greedy),
                beam_search(model, model.init_cache(batch.ids, batch.layout, 2), most, 2)[0],
            ]
            causal = CausalLM(FULL_SHAPE).to(device)
            generate(causal, causal.init_cache(3), most[:3], greedy)
    assert precision == "bf16" or written["cpu"] == written["cuda"]


class Steps:
    "A model whose decoding steps are counted, with what each of them waited for."

    def __init__(self, gpu, monkeypatch, model):
        self.gpu, self.waits, real = gpu, [], model.step

        def step(ids, cache):
            self.waits.append(gpu.waits.total())
            return real(ids, cache)

        monkeypatch.setattr(model, "step", step)

    def per_step(self) -> list[int]:
        ends = [*self.waits[1:], self.gpu.waits.total()]
        return [end - start for start, end in zip(self.waits, ends)][:-1]  # after the last one all is read


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_decoding_step_waits_to_learn_what_is_complete_and_for_nothing_else(
    gpu, monkeypatch, precision, num_beams
):
    torch.manual_seed(0)
    model = Transformer(FULL_SHAPE).to("cuda").eval()
    batch = in_memory_store(TEXTS[:6], TOKENIZER).batch(np.arange(6)).to("cuda")
    most = torch.tensor([3, 4, 5, 12, 12, 12], device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        cache = model.init_cache(batch.ids, batch.layout, num_beams)
        steps = Steps(gpu, monkeypatch, model)
        gpu.reset()
        if num_beams == 1:
            generate(model, cache, most, greedy)
        else:
            beam_search(model, cache, most, num_beams)
    waits = steps.per_step()
    assert len(waits) >= 5 and min(waits) == 1 and max(waits) <= 2, gpu.report()  # 2 where a sentence leaves


def test_the_causal_model_never_waits(gpu, steady_waits):
    train = TrainConfig(batch_size=16, epochs=0.5)
    chars = chars_per_token(TOKENIZER).to("cuda")
    task = CausalLMTask(CausalLM(FULL_SHAPE).to("cuda"), STORE, STORE, chars, 16)
    assert not steady_waits(lambda: fit(task, train)), gpu.report()


def test_adaptation_never_waits(gpu, steady_waits, tmp_path, monkeypatch):
    monkeypatch.setattr("bertlab.study.adaptation.default_device", lambda: torch.device("cuda"))
    save_model(MaskedLM(FULL_SHAPE), TOKENIZER, tmp_path / "model")
    train, records = TrainConfig("muon", precision="bf16", batch_size=16, epochs=1), []
    waits = steady_waits(
        lambda: records.append(continue_pretraining(tmp_path / "model", TEXTS, tmp_path / "run", train))
    )
    assert not waits, gpu.report()
    assert records[0]["result"]["after"]["loss"] > 0 and (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_translator_never_waits_in_training_and_translates(gpu, steady_waits, precision):
    pairs = PairStore(in_memory_store([text for text in TEXTS for _ in range(2)], TOKENIZER), 64)
    data = PreparedPairs(TOKENIZER, pairs, pairs, [list(p) for p in EXAMPLE_PAIRS], {}, True)
    train = TrainConfig(precision=precision, batch_size=16, epochs=1)
    task = TranslationTask(Transformer(FULL_SHAPE).to("cuda"), data, TranslationConfig(train=train))
    assert not steady_waits(lambda: fit(task, train)), gpu.report()
    for num_beams in (1, 2):
        assert len(translate(task.model, TOKENIZER, TEXTS[:5], num_beams)) == 5


def test_the_implementations_of_the_benchmark_never_wait(gpu, steady_waits):
    pytest.importorskip("transformers")
    shape = replace(FULL_SHAPE, max_len=256)  # the study pads to it
    setup = races.BenchmarkSetup(shape, DATA, torch.device("cuda"), 16, 1, steps=5, repeats=1)
    seen = {}
    for name, way in races.implementations(setup).items():
        if "compiled" in name:
            continue  # the compiler would build kernels for a GPU
        task, ahead = way.make(), setup.batches()
        gpu.reset()
        plan = [next(ahead) for _ in range(way.steps)]
        seen[name] = steady_waits(partial(races.time_steps, task, plan))
    assert {"bertlab, bf16", "torch encoder, fp32", "the study's way, fp32"} <= seen.keys()
    for name, waits in seen.items():
        theirs = sum(waits.values()) if name.startswith("transformers, ") else 0  # it looks for padding
        assert sum(waits.values()) <= theirs <= 3, (name, waits)


def test_masks_are_the_same_on_both_devices(gpu):
    from bertlab.masking import mask_batch

    batch = STORE.batch(np.arange(40))
    here = mask_batch(batch, FULL_SHAPE.vocab_size, MaskingConfig(), 0, 0)
    there = mask_batch(batch.to("cuda"), FULL_SHAPE.vocab_size, MaskingConfig(), 0, 0)
    assert torch.equal(here.inputs, there.inputs.cpu())


def test_the_check_sees_what_it_must(gpu):
    a = torch.ones(3, device="cuda")
    mixed = (
        lambda: a + torch.ones(3),
        lambda: a.numpy(),
        lambda: torch.cat([a, torch.ones(1)]),
        lambda: torch.ones(3)[a.long()],
    )
    for wrong in mixed:
        with pytest.raises(DeviceMismatch):
            wrong()
    gpu.reset()
    a + torch.tensor(2.0)
    assert not gpu.waits and not gpu.copies
    bool(a.sum()), a[a > 0], a.nonzero(), a.tolist(), a.cpu(), torch.tensor(1, device="cuda")
    assert gpu.waits.total() == 6, gpu.report()
