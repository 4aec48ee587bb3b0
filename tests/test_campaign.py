"A campaign rehearsed on the CPU: the real commands at a tiny size, in this process."

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bertlab import cli
from bertlab.bench import campaign, estimate, pipeline
from bertlab.core.files import BertlabError
from bertlab.study import scales

TINY = scales.Scale(
    width=64, heads=8, layers=6, merges=1000, batch=16, epochs=1000, max_len=32, eval_sentences=20
)
SECTION = {"section": "other", "rows": []}


@pytest.fixture
def text(tmp_path, monkeypatch):
    "A parallel corpus of 120 pairs, at a scale that makes every row a matter of moments."
    monkeypatch.setenv("BERTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(scales.SCALES, "tiny", TINY)
    monkeypatch.setattr(campaign, "gpu_tests", lambda: tmp_path / "none.py")
    monkeypatch.setattr(pipeline, "prepare_data", lambda *args: SimpleNamespace(corpus={"name": "words"}))
    monkeypatch.setattr(pipeline, "bench_sections", lambda device: {"tiny": lambda device: SECTION})
    rate = {"fp32": 1e10, "bf16": 2e10}
    for module in (campaign, estimate):
        monkeypatch.setattr(module, "matmul_rates", lambda *args, **kwargs: rate)
    things = ("array", "index", "table", "figure")
    pairs = [
        f"{thing} 의 번호 {i} 입니다\tthe {thing} number {i} is here" for i in range(30) for thing in things
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(["ko\ten", *pairs]), encoding="utf8")
    small = replace(campaign.TRANSLATOR.encoder, d_model=16, heads=2, d_ff=16, layers=1)
    translator = replace(campaign.TRANSLATOR, encoder=small, test_pairs=4, num_beams=2)
    pairs = replace(translator.pairs, merges=60, held_out_fraction=0.5)
    monkeypatch.setattr(campaign, "TRANSLATOR", replace(translator, pairs=pairs))
    return tmp_path / "pairs.tsv"


def in_this_process(stage, log, seconds):
    "Run a stage's command here."
    with open(log, "a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert stage.words[0] == "bertlab"
        status = cli.main(list(stage.words[1:]))
    return "failed" if status else "done"


def records(out):
    return {path.stem: json.loads(path.read_text()) for path in (out / "records").glob("*.json")}


def test_a_campaign_in_two_calls(text, tmp_path, capsys):
    config = campaign.CampaignConfig(str(text), tmp_path / "out", scale="tiny")

    def stopped_once(stage, log, seconds):
        if stage.name == "T6.1" and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            return "stopped"
        return in_this_process(stage, log, seconds)

    assert not campaign.run_campaign(config, hours=2, run=stopped_once)
    said = capsys.readouterr().out
    assert said.index("| stage ") < said.index("bench ...")  # what it will do comes before it is done
    assert "trial_tiny_T6.1" not in records(tmp_path / "out")
    assert campaign.run_campaign(config, hours=2, run=stopped_once)
    found = records(tmp_path / "out")
    rows = [f"trial_tiny_{row}" for row in campaign.campaign_rows(True)]
    assert {*rows, "bench_cpu", "translation", "campaign"} <= found.keys()
    for row in rows:
        assert found[row]["estimated_seconds"] >= 0 and "estimated_seconds" not in found[row]["config"]
    result = found["campaign"]["result"]
    assert {stage["status"] for stage in result.values()} == {"done"}
    assert all(stage["estimated_seconds"] > 0 and stage["seconds"] >= 0 for stage in result.values())
    before = {name: record["finished_at"] for name, record in found.items() if name != "campaign"}
    assert campaign.run_campaign(config, hours=2, run=lambda *args: pytest.fail("done before"))
    assert before == {
        name: record["finished_at"]
        for name, record in records(tmp_path / "out").items()
        if name != "campaign"
    }


def test_what_fails_is_said_and_does_not_stop_the_others(text, tmp_path, capsys):
    config = campaign.CampaignConfig(str(text), tmp_path / "out", scale="tiny")

    def pretend(stage, log, seconds):
        if stage.name == "text":
            return in_this_process(stage, log, seconds)
        return "failed" if stage.name == "bench" else "done"

    assert campaign.run_campaign(config, hours=2, run=pretend)
    assert "bench: failed" in capsys.readouterr().out
    status = {name: row["status"] for name, row in records(tmp_path / "out")["campaign"]["result"].items()}
    assert status.pop("bench").startswith("failed") and set(status.values()) == {"done"}


def test_what_does_not_fit_is_left_out(text, tmp_path, monkeypatch, capsys):
    config, now = campaign.CampaignConfig(str(text), tmp_path / "out", scale="tiny"), [0.0]
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ran = []

    def punctual(stage, log, seconds):
        ran.append(stage.name)
        now[0] += stage.seconds
        return in_this_process(stage, log, seconds) if stage.name == "text" else "done"

    assert campaign.run_campaign(config, hours=70 / 3600, run=punctual)
    assert ran == ["text", *campaign.campaign_rows(True)[:3]]  # of 20 seconds each; the bench takes minutes
    assert "left out: does not fit" in capsys.readouterr().out
    result = records(tmp_path / "out")["campaign"]["result"]
    assert result["bench"]["status"] == "left out: does not fit" and result["bench"]["seconds"] is None


def test_the_time_of_a_call_ends_it(text, tmp_path, monkeypatch):
    config, now = campaign.CampaignConfig(str(text), tmp_path / "out", scale="tiny"), [0.0]
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ran = []

    def slow(stage, log, seconds):
        "Three minutes a stage, or until the call is over."
        ran.append((stage.name, seconds))
        now[0] += min(seconds, 180.0)
        if stage.name == "text":
            in_this_process(stage, log, seconds)
        return "done" if seconds >= 180 else "stopped"

    calls = []
    while not campaign.run_campaign(config, hours=1, minutes=9, run=slow):
        calls.append(now[0])
        now[0] += 1000.0  # nobody counts the time between calls
    assert len(calls) >= 4
    assert all(seconds <= 9 * 60 - campaign.STOPPING_SECONDS for _, seconds in ran)
    state = json.loads((tmp_path / "out" / "campaign.json").read_text())
    assert 3000 < state["seconds"] <= 3600 + 1


def test_wrong_settings(text, tmp_path, capsys):
    config = campaign.CampaignConfig(str(text), tmp_path / "out", scale="tiny")
    campaign.run_campaign(config, hours=1 / 3600, run=in_this_process)
    with pytest.raises(BertlabError, match="other settings"):
        campaign.run_campaign(replace(config, scale="mini"))
    for hours, minutes in ((0, 9), (np.nan, 9), (1, 0.5), (1, np.inf)):
        with pytest.raises(BertlabError, match="hours is"):
            campaign.run_campaign(config, hours, minutes)
    assert cli.main(["campaign", "--corpus", str(tmp_path / "no.tsv"), "--out", str(tmp_path / "x")]) == 2
    assert "no.tsv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state", ["null", "[]", "{}", '{"config": {}, "newer": 1}', '{"config": {}, "status": []}', "{"]
)
def test_a_state_that_is_none_is_one_line(tmp_path, state):
    (tmp_path / "campaign.json").write_text(state)
    with pytest.raises(BertlabError) as caught:
        campaign.run_campaign(campaign.CampaignConfig("default", tmp_path))
    assert "\n" not in str(caught.value) and "Delete it" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["campaign.json"]


@pytest.mark.parametrize("record", ["null", "[]", "{}", '{"result": null}', '{"result": {"launches": 3}}'])
def test_a_bench_that_is_none_is_one_line(tmp_path, record):
    for device in ("cpu", "cuda"):
        (tmp_path / f"bench_{device}.json").write_text(record)
    for ask in (
        lambda: estimate.measured_utilization(tmp_path, campaign.TWEETS_ENCODER, "cpu"),
        lambda: estimate.measured_launch_seconds(tmp_path, "bf16", "cuda"),
    ):
        with pytest.raises(BertlabError, match="is not the record of such a run .* Delete it"):
            ask()
