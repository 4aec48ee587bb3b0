"bertlab's models in transformers and ONNX, against the real libraries."

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra interop")

from bertlab import export, interop
from bertlab.bpe import UNK_ID, train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.data.corpora import open_corpus
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.finetuning import Classifier, classify, load_classifier, save_classifier
from bertlab.mlm import MaskedLM, encode_masked, fill_mask, save_model
from bertlab.packing import Layout
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store

TEXTS = ["the matrix is singular", "언어 모델은 빈칸을 채운다", "returns a list of strings", "an array"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 60)


@pytest.fixture(scope="module")
def shape(tokenizer):
    return EncoderConfig(tokenizer.get_vocab_size(), d_model=32, heads=4, d_ff=64, layers=2, max_len=64)


@pytest.fixture(scope="module")
def mlm_folder(tokenizer, shape, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mlm") / "model"
    save_model(MaskedLM(shape), tokenizer, folder)
    return export.export_model(folder, folder.with_name("exported"))


@pytest.fixture(scope="module")
def classifier_folder(tokenizer, shape, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier") / "model"
    save_classifier(Classifier(shape, ("no", "yes"), HeadConfig(n_filters=5)).eval(), tokenizer, folder)
    return export.export_model(folder, folder.with_name("exported"))


WITHOUT_BERTLAB = """
import json, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bertlab": raise ImportError("bertlab is not here")
sys.meta_path.insert(0, Nothing())
try:
    import bertlab
    sys.exit("bertlab can be imported")
except ImportError:
    pass
"""
RUN_PIPELINE = """
from transformers import pipeline
kind, folder, text = sys.argv[1:]
print(json.dumps(pipeline(kind, model=folder, trust_remote_code=True)(text)))
"""
TRAIN = """
import transformers
auto, folder, to, texts = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
data = [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"] * 8]
if auto == "AutoModelForMaskedLM":
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
else:
    data = [row | {"labels": i % 2} for i, row in enumerate(data)]
    collator = transformers.DataCollatorWithPadding(tokenizer)
arguments = transformers.TrainingArguments(
    to + "-checkpoints", max_steps=12, learning_rate=1e-2, report_to=[], disable_tqdm=True, logging_steps=4,
    per_device_train_batch_size=16, use_cpu=True, save_strategy="no",
)
trainer = transformers.Trainer(model, arguments, collator, data, processing_class=tokenizer)
trainer.train()
trainer.save_model(to)
again = getattr(transformers, auto).from_pretrained(to, trust_remote_code=True)
assert all((w == again.state_dict()[name]).all() for name, w in trainer.model.state_dict().items())
print(json.dumps([row["loss"] for row in trainer.state.log_history if "loss" in row]))
"""


def run_without_bertlab(script: str, *words, cwd: Path):
    "What a script prints last, in a process in which bertlab cannot be imported."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_BERTLAB + script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("auto", ["AutoModelForMaskedLM", "AutoModelForSequenceClassification"])
def test_trainer_and_saving_again_without_bertlab(auto, mlm_folder, classifier_folder, tmp_path):
    pytest.importorskip("accelerate", reason="what Trainer needs")
    is_mlm = auto == "AutoModelForMaskedLM"
    folder, to = mlm_folder if is_mlm else classifier_folder, tmp_path / "again"
    losses = run_without_bertlab(TRAIN, auto, folder, to, *TEXTS, cwd=tmp_path)
    assert losses[-1] < losses[0]
    source = to / "modeling_bertlab.py"  # so the new folder is one to pass on, too
    assert source.read_text(encoding="utf8") == (folder / "modeling_bertlab.py").read_text(encoding="utf8")
    task, text = ("fill-mask", "returns a [MASK] of strings") if is_mlm else ("text-classification", TEXTS[0])
    found = run_without_bertlab(RUN_PIPELINE, task, to, text, cwd=tmp_path)
    assert np.isfinite([guess["score"] for guess in found]).all()
    registered = transformers.pipeline(
        task, model=str(to), device="cpu"
    )  # here bertlab's own classes open it
    assert type(registered.model).__module__ == "bertlab.interop"
    assert registered(text)[0]["score"] == pytest.approx(found[0]["score"], abs=1e-5)


def test_an_exported_model_fills_masks_without_bertlab(mlm_folder, tokenizer):
    from bertlab.mlm import load_model

    model, _ = load_model(mlm_folder.with_name("model"))
    text = "returns a [MASK] of strings"
    found = run_without_bertlab(RUN_PIPELINE, "fill-mask", mlm_folder, text, cwd=mlm_folder)
    expected = fill_mask(model, tokenizer, text, 5)[0]
    assert [guess["token"] for guess in found] == [tokenizer.token_to_id(token) for token, _ in expected]
    assert np.allclose([guess["score"] for guess in found], [p for _, p in expected], atol=1e-5)


def test_an_exported_classifier_classifies_without_bertlab(classifier_folder, tokenizer):
    from bertlab.finetuning import load_classifier

    model, _ = load_classifier(classifier_folder.with_name("model"))
    task = "text-classification"
    found = run_without_bertlab(RUN_PIPELINE, task, classifier_folder, TEXTS[0], cwd=classifier_folder)[0]
    p = classify(model, tokenizer, [TEXTS[0]])[0]
    assert found["label"] == ("no", "yes")[p.argmax()] and abs(found["score"] - p.max()) < 1e-5


def test_the_tokenizer_gives_the_same_ids_on_10000_sentences(tmp_path):
    english = [text for text, _ in islice(open_corpus("default"), 8000)]
    try:
        korean = [text for text, _ in open_corpus("messages", lang="ko")][:2000]
    except BertlabError:
        korean = []
    sentences = english + korean
    tokenizer = train_tokenizer(sentences, 500)
    interop.to_fast_tokenizer(tokenizer, 256).save_pretrained(tmp_path)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(sentences) >= 8000
    assert fast(sentences)["input_ids"] == [e.ids for e in tokenizer.encode_batch(sentences)]


def test_tied_weights_are_saved_once_and_come_back(mlm_folder, tmp_path):
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm_folder)
    model.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as f:
        rows = [name for name in f.keys() if f.get_slice(name).get_shape()[0] == model.config.vocab_size]
    assert rows == ["encoder.embedding.weight"]
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_labels_give_the_loss_and_padding_changes_nothing(mlm_folder):
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm_folder).eval()
    ids, mask = torch.randint(5, 40, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    labels = torch.where(torch.rand(3, 9) < 0.3, ids, -100)
    labels[0, 0] = ids[0, 0]
    out = model(ids, mask, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(out.loss, expected, atol=1e-6)
    wider = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    assert torch.allclose(model(*wider).logits[:, :9], out.logits, atol=1e-5)
    left = torch.nn.functional.pad(ids, (4, 0)), torch.nn.functional.pad(mask, (4, 0))
    assert torch.allclose(model(*left).logits[:, 4:], out.logits, atol=1e-5)


def test_trainer_trains_it(mlm_folder, tmp_path):
    pytest.importorskip("accelerate", reason="what Trainer needs")
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mlm_folder)
    data = [{"input_ids": ids} for ids in tokenizer(TEXTS * 8)["input_ids"]]
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=12, learning_rate=1e-2, report_to=[], disable_tqdm=True, logging_steps=4,
        per_device_train_batch_size=16, use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, collator, data)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


def test_an_export_never_overwrites(mlm_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(BertlabError, match="exists already"):
        export.export_model(mlm_folder.with_name("model"), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_a_batch_with_an_empty_text(mlm_folder, classifier_folder):
    ids, mask = torch.randint(5, 40, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[1] = 0
    for auto, folder in (
        (transformers.AutoModelForMaskedLM, mlm_folder),
        (transformers.AutoModelForSequenceClassification, classifier_folder),
    ):
        model = auto.from_pretrained(folder).eval()
        with torch.no_grad():
            found, alone = model(ids, mask).logits, model(ids[:1], mask[:1]).logits
        assert torch.isfinite(found).all() and torch.allclose(found[0], alone[0], atol=1e-5)


MODEL_CARDS = {  # what a model's config says of its run -> what the card must say, and what it must not
    "mlm": ({"corpus": {"name": "rain.txt"}}, "Trained on: rain.txt", "Classes"),
    "ours": (
        {"starts_from": {"name": "mine", "elsewhere": False, "random": False}, "result": {"accuracy": 0.75}},
        "Pre-trained model: `mine`.\n",
        "license of its authors",
    ),
    "elsewhere": (
        {"starts_from": {"name": "klue/roberta-small", "elsewhere": True}},
        "`klue/roberta-small`, which was not pre-trained with bertlab; the license of its authors",
        "random weights",
    ),
    "random": (
        {"starts_from": {"name": "mine", "elsewhere": False, "random": True}},
        "random weights, shaped like `mine`",
        "license of its authors",
    ),
    "unknown": ({}, "Pre-trained model: not recorded.", "license of its authors"),
}


@pytest.mark.parametrize("kind", list(MODEL_CARDS))
def test_the_model_card_says_where_the_weights_come_from(kind, tokenizer, shape, tmp_path):
    extra, said, unsaid = MODEL_CARDS[kind]
    if kind == "mlm":
        save_model(MaskedLM(shape), tokenizer, tmp_path / "m", extra)
    else:
        save_classifier(Classifier(shape, ("no", "yes")).eval(), tokenizer, tmp_path / "m", extra)
    card = (export.export_model(tmp_path / "m", tmp_path / "e") / "README.md").read_text(encoding="utf8")
    assert said in card and unsaid not in card and card.startswith("---\nlibrary_name: transformers\n")
    assert str(tmp_path) not in card
    assert ("| accuracy | 0.750 |" in card) == (kind == "ours")


FOREIGN_SHAPE = {  # what a BERT from elsewhere becomes
    "positions": "learned", "norm": "post", "embedding_norm": True, "embedding_scale": False, "activation": "gelu"
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, FOREIGN_SHAPE | {"max_len": 5}])
def test_onnx_of_an_encoder_at_any_batch_and_length(tokenizer, shape, changes, tmp_path):
    "Seen before: a model in half precision, or of short sentences, was an error; and one on a GPU left it."
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = MaskedLM(replace(shape, **changes)).bfloat16()
    session = onnxruntime.InferenceSession(export.export_onnx(model, tmp_path / "e.onnx"))
    assert model.training and model.encoder.embedding.weight.dtype == torch.bfloat16
    model = model.float().eval()
    for lengths in ([1], [64], [5, 1, 9], [64, 2, 30, 7, 1]):
        lengths = [min(n, model.config.max_len) for n in lengths]
        ids = [torch.randint(5, shape.vocab_size, (n,)) for n in lengths]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        feed = {"input_ids": padded.numpy(), "attention_mask": mask.long().numpy()}
        with torch.no_grad():
            expected = model.encoder(torch.cat(ids), Layout.from_lengths(lengths))
        assert np.abs(session.run(None, feed)[0][mask.numpy()] - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "rotary", "activation": "geglu", "norm": "post"}, FOREIGN_SHAPE]
)
def test_onnx_gives_the_same_numbers_at_any_length(tokenizer, shape, changes, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = Classifier(replace(shape, **changes), ("a", "b"), HeadConfig(n_filters=4)).eval()
    session = onnxruntime.InferenceSession(export.export_onnx(model, tmp_path / "c.onnx"))
    for lengths in ([3], [5, 1, 9], [64, 2]):
        ids = [torch.randint(5, shape.vocab_size, (n,)) for n in lengths]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = (torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]).long()
        found = session.run(None, {"input_ids": padded.numpy(), "attention_mask": mask.numpy()})[0]
        with torch.no_grad():
            expected = model(torch.cat(ids), Layout.from_lengths(lengths))
        assert np.abs(found[:, 1] - expected.numpy()).max() < 1e-4 and not found[:, 0].any()
    nothing = {
        "input_ids": np.zeros((2, 3), dtype=np.int64),
        "attention_mask": np.int64([[0, 0, 0], [1, 0, 0]]),
    }
    nothing["input_ids"][1, 0] = UNK_ID  # what a text without a token is
    found = session.run(None, nothing)[0]
    assert np.abs(found[0] - found[1]).max() < 1e-6 and found[0, 1]


def test_the_modelling_file_needs_torch_and_transformers_only():
    source = export.modeling_source()
    roots = {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers", "numpy"}
    assert asdict(EncoderConfig()) and Encoder


# ---------------------------------------------------------------- as bertlab reads and computes it


BLANKS = [
    "red cat, a [MASK].",
    "[MASK] returns a list",
    "the ([MASK]), is singular",
    "언어 [MASK]은 빈칸을",
    "an[MASK]ay",
    "[MASK][MASK] and [MASK]ing,\n[MASK]\tlist ",
    "  \u200b[MASK]\u200blist",
    "[MASK]",
]


def test_what_is_glued_to_a_blank_begins_no_word(mlm_folder, tokenizer):
    "Seen before: `[MASK] ▁ .`, which training never shows, and so other guesses than those of fill_mask."
    fast = transformers.AutoTokenizer.from_pretrained(mlm_folder)
    for text in BLANKS:
        assert fast(text)["input_ids"] == encode_masked(tokenizer, text, 64)[0].tolist(), text


def test_special_tokens_in_a_text_to_classify_are_text(classifier_folder, tokenizer):
    fast = transformers.AutoTokenizer.from_pretrained(classifier_folder)
    for text in ("a [SEP] list", "[PAD]", "an [MASK] of [UNK]s", *TEXTS):
        assert fast(text)["input_ids"] == in_memory_store([text], tokenizer, 64).ids.tolist(), text


def test_an_empty_text_has_the_answer_of_predict(classifier_folder, tokenizer):
    "Seen before: alone it was a traceback, and in a batch it had the answer of no token."
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    fast = transformers.AutoTokenizer.from_pretrained(classifier_folder)
    expected = classify(load_classifier(classifier_folder.with_name("model"))[0], tokenizer, ["", "a list"])
    for texts in ([""], ["", "a list"]):
        with torch.no_grad():
            found = model(**fast(texts, padding=True, return_tensors="pt")).logits.softmax(1)
        assert np.allclose(found, expected[: len(texts)], atol=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_of_an_opened_model(tokenizer, shape, positions, dtype, tmp_path):
    "Seen before: of rotary ones whatever lay in the memory; and in half precision a traceback."
    torch.manual_seed(0)
    model = MaskedLM(replace(shape, positions=positions)).eval()
    save_model(model, tokenizer, tmp_path / "m")
    folder, ids = export.export_model(tmp_path / "m", tmp_path / "e"), torch.arange(5, 25)
    rubbish = [torch.full_like(model.encoder.positions, 9.0) for _ in range(50)]
    del rubbish  # so that fresh memory is not zero
    opened = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        found, expected = opened(ids[None]).last_hidden_state, model.encoder(ids, Layout.from_lengths([20]))
    assert found.dtype == dtype
    assert torch.equal(opened.encoder.positions.to(dtype), model.encoder.positions.to(dtype))
    assert torch.allclose(found[0].float(), expected, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_what_the_config_asks_for_is_given(mlm_folder):
    "Seen before: no hidden states, and an output that is no tuple, without a word."
    ids, config = torch.arange(5, 9)[None], {"output_hidden_states": True, "output_attentions": True}
    for auto in ("AutoModel", "AutoModelForMaskedLM"):
        model = getattr(transformers, auto).from_pretrained(mlm_folder, **config)
        out = model(ids)
        assert len(out.hidden_states) == 3 and len(out.attentions) == 2
        assert model(ids, output_attentions=False).attentions is None
        assert isinstance(model(ids, return_dict=False), tuple)


def test_tokens_can_be_added(mlm_folder, tmp_path):
    "Seen before: NotImplementedError, and a model that was half changed."
    fast = transformers.AutoTokenizer.from_pretrained(mlm_folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm_folder)
    fast.add_tokens(["kubernetes"])
    model.resize_token_embeddings(len(fast))
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.config.vocab_size == len(fast) == again.get_input_embeddings().num_embeddings
    ids = fast("a kubernetes list", return_tensors="pt")
    assert torch.equal(again.eval()(**ids).logits, model.eval()(**ids).logits)


def test_an_export_opens_in_any_version_and_for_anybody(classifier_folder):
    "Seen before: a class of tokenizers that transformers 4 does not know, and weights that only their owner reads."
    config = json.loads((classifier_folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert len({path.stat().st_mode for path in classifier_folder.iterdir()}) == 1
    assert "precision, recall and F1 are those of yes." in (classifier_folder / "README.md").read_text()


def test_a_new_head_is_drawn(mlm_folder, classifier_folder):
    "Seen before: the weights of a head for classes of one's own were whatever lay in the memory, up to NaN."
    auto, options = transformers.AutoModelForSequenceClassification, {"ignore_mismatched_sizes": True}
    kept = auto.from_pretrained(classifier_folder).classifier.convs.state_dict()
    for folder in (mlm_folder, classifier_folder):
        head = auto.from_pretrained(folder, num_labels=3, **options).classifier
        for weight in head.parameters():
            assert 0 < weight.std() and weight.abs().max() < 0.6
        assert head.out.out_features == 3
    assert all(torch.equal(weight, kept[name]) for name, weight in head.convs.state_dict().items())


def test_the_loss_of_several_batches_is_their_mean(classifier_folder, tmp_path):
    "Seen before: Trainer added up the losses of the batches of one step, and so their gradients."
    pytest.importorskip("accelerate", reason="what Trainer needs")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier_folder)
    data = [{"input_ids": [5, 6, 7], "labels": i % 2} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, learning_rate=0.0, report_to=[], disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=4, use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    assert 0.4 < trainer.state.log_history[0]["loss"] < 1.0  # and not four times 0.69


def test_what_a_head_cannot_learn_is_refused(mlm_folder):
    auto, ids = transformers.AutoModelForSequenceClassification, torch.arange(5, 9)[None]
    for problem_type in ("multi_label_classification", "regression"):  # before: another loss, unsaid
        with pytest.raises(BertlabError, match="gives a text one of its classes"):
            auto.from_pretrained(mlm_folder, num_labels=3, problem_type=problem_type)
    model = auto.from_pretrained(mlm_folder, num_labels=3)
    column, row = (
        model.eval()(ids, labels=labels).loss for labels in (torch.tensor([[1]]), torch.tensor([1]))
    )
    assert torch.equal(column, row)


def test_attentions_in_mixed_precision_and_the_loss_of_no_token(mlm_folder):
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm_folder)
    with torch.autocast("cpu", torch.bfloat16):
        weights = model(torch.arange(5, 9)[None], output_attentions=True).attentions[0]
    assert torch.allclose(weights.sum(-1).float(), torch.ones(1, 4, 4), atol=0.02)
    nothing = torch.zeros(1, 0)  # as a tokenizer of transformers 4 gives it
    assert model(nothing.long(), nothing, labels=nothing).loss.isnan()  # as of a batch without a label
