"""A run's folder: what a run is known by, what it may not replace, how it is trained longer, and read."""

import errno
import json
import os
import signal
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from filelock import FileLock
from helpers import assert_one_line, contents
from torch import nn

from bertlab.commands.course import export_command
from bertlab.core import records
from bertlab.core.checkpoints import CHECKPOINT_FILES
from bertlab.core.distributed import sum_metrics, to_sum_dtype
from bertlab.core.files import BertlabError, read_json, write_json
from bertlab.core.records import (
    check_run_folder,
    default_device,
    describe_differences,
    find_record,
    list_checkpoints,
    open_run,
    run_or_load,
)
from bertlab.training import Interrupted, Task, TrainConfig, fit, lr_at

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and these signals are POSIX's")
CONFIG = {"corpus": "text.txt", "train": {"epochs": 1, "schedule": "constant", "lr": 0.1}}
IDENTITY = {"corpus": "c0ffee", "tokenizer": "deed"}
RECORD = {"kind": "pretraining", "result": {"loss": 1.0}, "history": [{"epoch": 1.0, "seconds": 1.0}]}


def no_work(folder):
    raise AssertionError("nothing is to be done")


def changed(**train):
    return CONFIG | {"train": CONFIG["train"] | train}


@pytest.fixture
def finished(tmp_path):
    run_or_load(tmp_path / "run", CONFIG, lambda folder: RECORD, IDENTITY)
    return tmp_path / "run"


# ---------------------------------------------------------------- what is not ours

FOREIGN = {
    "a transformers model": {"config.json": '{"model_type": "bert"}', "model.safetensors": "w"},
    "a model without its config": {"model.safetensors": "w"},
    "a tokenizer": {"tokenizer.json": "{}"},
    "a config of something else": {"config.json": '{"lr": 1}'},
    "a config that is a list": {"config.json": "[]"},
    "a config that is null": {"config.json": "null"},
    "a config that is empty": {"config.json": "{}"},
    "a config that is no JSON": {"config.json": "lr = 1"},
    "a saved model": {
        "config.json": '{"model_type": "mlm", "format": 2, "tokenizer": "", "config": {}, "extra": {}}'
    },
    "a folder with a model": {"model/config.json": "{}"},
    "a record without a config": {"record.json": json.dumps(RECORD)},
    "checkpoints without a config": {"checkpoints/step-00000001/state.json": "{}"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path, files):
    for name, text in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    before = contents(tmp_path)
    for take in (
        lambda out: run_or_load(out, CONFIG, no_work, IDENTITY),
        lambda out: open_run(out, CONFIG, IDENTITY),
        check_run_folder,
    ):
        with pytest.raises(BertlabError) as caught:
            take(tmp_path / "out")
        assert_one_line(caught, str(tmp_path / "out"))
    assert contents(tmp_path) == before  # not even a lock


def test_other_files_are_in_nobodys_way(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run_or_load(tmp_path / "run", CONFIG, lambda folder: RECORD, IDENTITY) == RECORD
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_that_failed_early_may_be_corrected(tmp_path):
    def fails(folder):
        raise BertlabError("no such corpus")

    with pytest.raises(BertlabError, match="no such corpus"):
        run_or_load(tmp_path / "run", CONFIG, fails, IDENTITY)
    assert run_or_load(tmp_path / "run", changed(lr=0.2), lambda folder: RECORD, IDENTITY) == RECORD


@pytest.fixture
def model(tmp_path):
    "M/model, as a finished pre-training leaves it."
    folder = tmp_path / "M" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    "out", ["M/model", "M", "M/model/", "M/../M/model", "M/model/head", "link", "here/.."]
)
def test_out_is_not_where_the_model_is(tmp_path, model, out):
    (tmp_path / "link").symlink_to(tmp_path / "M")
    (tmp_path / "M" / "here").mkdir()
    if out == "here/..":
        out = "M/here/.."
    before = contents(tmp_path)
    with pytest.raises(BertlabError) as caught:
        check_run_folder(tmp_path / out, model)
    assert_one_line(caught, "holds what the command reads", "Choose a new folder")
    assert contents(tmp_path) == before


def test_out_may_be_beside_the_model(tmp_path, model):
    (tmp_path / "data.csv").write_text("text,label")
    assert check_run_folder(tmp_path / "M" / "head", model, tmp_path / "data.csv") == tmp_path / "M" / "head"
    assert check_run_folder(tmp_path / "new", model, tmp_path / "data.csv", "default") == tmp_path / "new"
    assert check_run_folder(tmp_path / "new", model, tmp_path) == tmp_path / "new"  # below the data


@pytest.mark.parametrize("out", ["run/model", "run/checkpoints/x", "run/tensorboard", "run/model/a/b"])
def test_out_is_not_where_an_unfinished_run_will_put_its_model(tmp_path, out):
    def fails(folder):
        raise BertlabError("stopped")

    with pytest.raises(BertlabError, match="stopped"):
        run_or_load(tmp_path / "run", CONFIG, fails, IDENTITY)
    assert not (tmp_path / "run" / "model").exists()
    for command in (check_run_folder, lambda to: export_command([str(tmp_path / "other"), "--to", str(to)])):
        with pytest.raises(BertlabError) as caught:
            command(tmp_path / out)
        assert_one_line(caught, out, f"belongs to the run in {tmp_path / 'run'}", "Choose a new folder")
    assert check_run_folder(tmp_path / "run" / "head") == tmp_path / "run" / "head"


@pytest.mark.parametrize("out", ["data.csv", "/", "data.csv/run"])
def test_out_is_a_folder(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label")
    for take in (check_run_folder, lambda out: run_or_load(out, CONFIG, no_work)):
        with pytest.raises(BertlabError) as caught:
            take(out)
        assert_one_line(caught, out.removesuffix("/run"))
    assert contents(tmp_path) == {"data.csv": b"text,label"}


def test_the_current_folder_may_be_a_run(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert run_or_load(".", CONFIG, lambda folder: RECORD) == RECORD
    assert run_or_load(".", CONFIG, no_work) == RECORD


@posix
def test_a_pipe_as_config_is_not_waited_for(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.json")
    with pytest.raises(BertlabError) as caught:
        run_or_load(tmp_path / "run", CONFIG, no_work)
    assert_one_line(caught, "config.json", "is not a regular file")


@pytest.mark.parametrize("text", ["{}", "[]", "null", "7", '"record"', "{", ""])
def test_a_record_that_is_none_is_one_line(finished, text):
    (finished / "record.json").write_text(text)
    with pytest.raises(BertlabError) as caught:
        run_or_load(finished, CONFIG, no_work, IDENTITY)
    assert_one_line(caught, "record.json", "Delete it")


@pytest.mark.parametrize("name", ["r" * 244, "한" * 81])
def test_the_name_of_a_run_may_be_long(tmp_path, name):
    assert run_or_load(tmp_path / name, CONFIG, lambda folder: RECORD) == RECORD


# ---------------------------------------------------------------- what a run is known by


@pytest.mark.parametrize("name", ["corpus", "tokenizer", "model"])
def test_a_run_on_other_data_is_refused_with_both_fingerprints(finished, name):
    before, other = contents(finished), IDENTITY | {name: "facade"}
    with pytest.raises(BertlabError) as caught:
        run_or_load(finished, CONFIG, no_work, other)
    was = IDENTITY.get(name, "none")
    assert_one_line(caught, f"holds a run on another {name} (facade, was {was})", "Choose another folder")
    assert contents(finished) == before


def test_an_interrupted_run_does_not_go_on_with_another_corpus(tmp_path):
    def stops(folder):
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_or_load(tmp_path / "run", CONFIG, stops, IDENTITY)
    with pytest.raises(BertlabError, match="holds a run on another corpus"):
        run_or_load(tmp_path / "run", CONFIG, no_work, IDENTITY | {"corpus": "facade"})
    assert run_or_load(tmp_path / "run", CONFIG, lambda folder: RECORD, IDENTITY) == RECORD


@pytest.mark.parametrize(
    "config, says",
    [
        (changed(lr=0.2), "(train.lr: 0.2, was 0.1)"),
        (changed(epochs=0.5), "(train.epochs: 0.5, was 1)"),
        (changed(lr=0.2, epochs=3), "(train.epochs: 3, was 1; train.lr: 0.2, was 0.1)"),
        (CONFIG | {"corpus": "other.txt"}, "(corpus: other.txt, was text.txt)"),
        ({"train": CONFIG["train"]}, "(corpus: unset, was text.txt)"),
        (CONFIG | {"layers": 2}, "(layers: 2, was unset)"),
    ],
)
def test_other_settings_are_named_with_both_values(finished, config, says):
    with pytest.raises(BertlabError) as caught:
        run_or_load(finished, config, no_work, IDENTITY)
    assert_one_line(caught, "holds a run with other settings", says)


def test_many_differences_stay_one_line():
    text = describe_differences({f"a{i}": i for i in range(50)}, {})
    assert text.count(";") == 4 and text.endswith("and 46 more")


# ---------------------------------------------------------------- longer, on purpose


def test_a_training_of_hardly_any_epoch_has_a_learning_rate():
    assert lr_at(TrainConfig(schedule="wsd", epochs=1e-320), 0.0) == TrainConfig().lr


@pytest.mark.parametrize("schedule", ["constant", "exponential", "cosine"])
def test_a_finished_run_can_be_trained_longer(tmp_path, schedule):
    config = changed(schedule=schedule)
    run_or_load(tmp_path / "run", config, lambda folder: RECORD, IDENTITY)
    longer = config | {"train": config["train"] | {"epochs": 3}}
    new = RECORD | {"history": [{"epoch": 3.0, "seconds": 1.0}]}

    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_or_load(tmp_path / "run", longer, killed, IDENTITY)
    assert run_or_load(tmp_path / "run", longer, lambda folder: new, IDENTITY) == new
    assert run_or_load(tmp_path / "run", longer, no_work, IDENTITY) == new
    assert RECORD.items() <= read_json(tmp_path / "run" / "record-1.0.json").items()  # the old one is kept
    with pytest.raises(BertlabError, match=r"train\.epochs: 1, was 3"):
        run_or_load(tmp_path / "run", config, no_work, IDENTITY)


def test_a_wsd_run_cannot_be_trained_longer_and_says_why(tmp_path):
    config = changed(schedule="wsd")
    run_or_load(tmp_path / "run", config, lambda folder: RECORD)
    before = contents(tmp_path / "run")
    with pytest.raises(BertlabError) as caught:
        run_or_load(tmp_path / "run", config | {"train": config["train"] | {"epochs": 3}}, no_work)
    assert_one_line(caught, "wsd", "depends on the last epoch", "train.epochs: 3, was 1", "another folder")
    assert contents(tmp_path / "run") == before


def test_a_finished_run_without_its_model_goes_on_from_its_last_checkpoint(tmp_path):
    def work(folder):
        for name in ("checkpoints/step-00000001", "model"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / "checkpoints/step-00000001/state.json", {})
        return RECORD

    run = tmp_path / "run"
    run_or_load(run, CONFIG, work, IDENTITY)
    assert run_or_load(run, CONFIG, no_work, IDENTITY) == RECORD
    (run / "model").rmdir()
    assert run_or_load(run, CONFIG, work, IDENTITY) == RECORD and (run / "model").is_dir()


def test_epochs_without_a_schedule_are_a_setting_like_any_other(tmp_path):
    run_or_load(tmp_path / "run", {"epochs": 1}, lambda folder: RECORD)
    with pytest.raises(BertlabError, match=r"other settings \(epochs: 2, was 1\)"):
        run_or_load(tmp_path / "run", {"epochs": 2}, no_work)


# ---------------------------------------------------------------- only reading


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_finished_run_is_read_without_writing_anything(finished, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(records, "write_json", refuse)
    before = contents(finished.parent)
    assert run_or_load(finished, CONFIG, no_work, IDENTITY) == RECORD
    with pytest.raises(BertlabError, match="other settings"):
        run_or_load(finished, changed(lr=1), no_work, IDENTITY)
    assert contents(finished.parent) == before


def test_a_finished_run_is_read_while_another_process_holds_its_lock(finished):
    with records.folder_lock(finished):
        assert run_or_load(finished, CONFIG, no_work, IDENTITY) == RECORD


def test_find_record_raises_nothing_about_other_runs(tmp_path, finished):
    assert find_record(finished, CONFIG, IDENTITY) == RECORD
    assert find_record(finished, changed(lr=1), IDENTITY) is None
    assert find_record(finished, CONFIG) is None
    assert find_record(tmp_path / "nowhere", CONFIG) is None


# ---------------------------------------------------------------- checkpoints


class Line(Task):
    "A line through noisy points: the smallest thing that trains, with dropout."

    def __init__(self, stop_at=None, sign=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.steps_per_epoch, self.stop_at, self.sign = 5, stop_at, sign

    def batches(self, epoch, start=0):
        for i in range(start, self.steps_per_epoch):
            if self.sign and 5 * epoch + i == self.stop_at:
                os.kill(os.getpid(), self.sign)
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(1000 * epoch + i))

    def loss(self, batch, epoch):
        loss = (self.model(batch).squeeze(1) - batch.sum(1)).square().mean()
        return loss, {"loss": loss.detach(), "n": torch.tensor(1), "tokens": torch.tensor(4)}

    def metrics(self, sums):
        return {"loss": sums["loss"] / sums["n"]}

    def evaluate(self):
        return self.metrics(sum_metrics([self.loss(torch.ones(2, 3), 0)[1]]))


TRAIN = TrainConfig(lr=1e-2, epochs=2, batch_size=4)


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.fixture
def trained(tmp_path):
    "A run of two epochs, with a checkpoint after each; and its history and weights."
    task = Line()
    return tmp_path, untimed(fit(task, TRAIN, tmp_path)), task.model.state_dict()


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_flipped_bit_is_noticed_wherever_it_is(trained, name, place):
    folder, history, weights = trained
    newest = list_checkpoints(folder)[-1]
    data = bytearray((newest / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (newest / name).write_bytes(data)
    task = Line()
    with pytest.warns(UserWarning, match="step-00000010 is damaged and is passed over"):
        assert untimed(fit(task, TRAIN, folder)) == history
    assert all(torch.equal(value, weights[name]) for name, value in task.model.state_dict().items())
    assert (newest.parent / "step-00000010.damaged").is_dir()


@pytest.mark.parametrize(
    "change", [{"step": 7}, {"sums": {"loss": 1.0}}, {"best_step": 3}, {"history": []}, {"seconds": 1e9}]
)
def test_an_edited_state_is_not_used(trained, change):
    folder, history, _ = trained
    path = list_checkpoints(folder)[-1] / "state.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.warns(UserWarning, match="step-00000010 is damaged and is passed over.*checksum"):
        assert untimed(fit(Line(), TRAIN, folder)) == history


@pytest.mark.parametrize("schedule", ["constant", "exponential", "cosine"])
def test_trained_longer_it_ends_as_if_it_had_been_asked_for_at_once(tmp_path, schedule):
    config = replace(TRAIN, schedule=schedule, warmup_epochs=0.5, optimizer="muon")
    at_once, later = Line(), Line()
    expected = untimed(fit(at_once, replace(config, epochs=4)))
    fit(Line(), config, tmp_path)
    assert untimed(fit(later, replace(config, epochs=4), tmp_path)) == expected
    assert all(torch.equal(v, later.model.state_dict()[k]) for k, v in at_once.model.state_dict().items())


def test_a_checkpoint_of_a_wsd_run_knows_its_end(tmp_path):
    config = replace(TRAIN, schedule="wsd")
    fit(Line(), config, tmp_path)
    with pytest.raises(BertlabError, match=r"another config \(epochs: 4, was 2\)"):
        fit(Line(), replace(config, epochs=4), tmp_path)


def test_fewer_epochs_than_were_trained_are_refused(trained):
    with pytest.raises(BertlabError, match="epochs is 1, 2 are trained already"):
        fit(Line(), replace(TRAIN, epochs=1), trained[0])


def test_how_checkpoints_are_made_is_no_part_of_a_run(trained):
    folder, history, _ = trained
    config = replace(TRAIN, checkpoint_minutes=1.0, keep_checkpoints=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert untimed(fit(Line(), config, folder)) == history


@posix
@pytest.mark.parametrize("sign", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_asked_to_stop_a_run_saves_its_step(tmp_path, sign):
    with pytest.raises(Interrupted, match="stopped after step 4 of 10; the same command goes on from there"):
        fit(Line(stop_at=3, sign=getattr(signal, sign)), TRAIN, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]
    assert untimed(fit(Line(), TRAIN, tmp_path)) == untimed(fit(Line(), TRAIN))


@posix
def test_nohup_is_respected(tmp_path):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        history = fit(Line(stop_at=3, sign=signal.SIGHUP), TRAIN, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, old)
    assert history[-1]["step"] == 10


@pytest.mark.parametrize("field", ["seed", "epochs", "batch_size"])
@pytest.mark.parametrize("value", [10**20, 1e308, float("inf"), float("nan"), -1])
def test_settings_beyond_all_measure_are_one_line(field, value):
    if (field, value) == ("batch_size", 10**20):
        pytest.skip("a batch may be as large as it likes: there are never more sentences than there are")
    with pytest.raises(BertlabError) as caught:
        replace(TRAIN, **{field: value})
    assert_one_line(caught, f"{field} is ")


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize(
    "cuda, mps, computes, expected",
    [(1, 1, 1, "cuda"), (0, 1, 1, "mps"), (0, 1, 0, "cpu"), (0, 0, 0, "cpu")],
)
def test_the_device_is_one_that_computes(monkeypatch, cuda, mps, computes, expected):
    def ones(n, device):
        assert device == "mps"
        if not computes:
            raise RuntimeError("MPS backend out of memory")
        return torch.full((n,), 1.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    monkeypatch.setattr(records.torch, "ones", ones)
    assert default_device().type == expected


def test_nothing_of_the_loop_is_float64_where_the_device_has_none(monkeypatch, tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    from bertlab import training

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = [
                x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)
            ]
            assert all(x.dtype != torch.float64 for x in found), func
            return out

    class OnMPS:
        "Looks like a number on Apple's GPU."

        device = torch.device("mps")

        def detach(self):
            return self

        def to(self, dtype):
            return dtype

    assert to_sum_dtype(OnMPS()) == torch.float32
    assert to_sum_dtype(torch.tensor(1)).dtype == torch.float64
    monkeypatch.setattr(training, "to_sum_dtype", lambda value: value.detach().float())
    monkeypatch.setattr(training, "sum_dtype", lambda device: torch.float32)
    monkeypatch.setattr("bertlab.core.distributed.to_sum_dtype", lambda value: value.detach().float())
    with NoFloat64():
        fit(Line(), TRAIN, tmp_path)
        fit(Line(), replace(TRAIN, epochs=3), tmp_path)


def test_a_record_knows_its_config_as_nested_dicts(tmp_path):
    config = {"data": {"merges": 40}, "train": asdict(TRAIN)}
    record = records.run_record("example", config, {}, [], {})
    write_json(tmp_path / "record.json", record)
    assert read_json(tmp_path / "record.json")["config"]["train"]["keep_checkpoints"] == 2
    assert {"finished_at", "git_commit", "versions", "device"} <= set(record)


@pytest.mark.parametrize("name", ["tokenizer_fingerprint.json", "diverged.json", "tensorboard"])
def test_files_of_others_with_the_names_of_a_run_stay(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(BertlabError) as caught:
        run_or_load(tmp_path / "run", CONFIG, no_work)
    assert_one_line(caught, f"holds a model or a run already ('{name}')", "Choose a new folder")
    assert contents(tmp_path / "run") == {name: b"mine"}
