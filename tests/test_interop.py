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
from bertlab.bpe import train_tokenizer
from bertlab.core.files import BertlabError
from bertlab.data.corpora import open_corpus
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.finetuning import Classifier, classify, save_classifier
from bertlab.mlm import MaskedLM, fill_mask, save_model
from bertlab.packing import Layout
from bertlab.text_cnn import HeadConfig

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


ALONE = """
import json, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bertlab": raise ImportError("bertlab is not here")
sys.meta_path.insert(0, Nothing())
from transformers import pipeline
kind, folder, text = sys.argv[1:]
print(json.dumps(pipeline(kind, model=folder, trust_remote_code=True)(text)))
"""


def run_without_bertlab(kind: str, folder: Path, text: str):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, kind, str(folder), text]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_exported_model_fills_masks_without_bertlab(mlm_folder, tokenizer):
    from bertlab.mlm import load_model

    model, _ = load_model(mlm_folder.with_name("model"))
    text = "returns a [MASK] of strings"
    found = run_without_bertlab("fill-mask", mlm_folder, text)
    expected = fill_mask(model, tokenizer, text, 5)[0]
    assert [guess["token"] for guess in found] == [tokenizer.token_to_id(token) for token, _ in expected]
    assert np.allclose([guess["score"] for guess in found], [p for _, p in expected], atol=1e-5)


def test_an_exported_classifier_classifies_without_bertlab(classifier_folder, tokenizer):
    from bertlab.finetuning import load_classifier

    model, _ = load_classifier(classifier_folder.with_name("model"))
    found = run_without_bertlab("text-classification", classifier_folder, TEXTS[0])[0]
    p = classify(model, tokenizer, [TEXTS[0]])
    p = np.asarray(getattr(p, "probabilities", p))[0]
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


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "activation": "geglu", "norm": "post"}])
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


def test_the_modelling_file_needs_torch_and_transformers_only():
    source = export.modeling_source()
    roots = {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers", "numpy"}
    assert asdict(EncoderConfig()) and Encoder
