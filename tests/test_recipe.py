"Changes of the recipe: each trains, stops and goes on like a row of the study; costs are measured once."

import json
import shutil
from dataclasses import replace

import pytest

from bertlab.core.files import BertlabError
from bertlab.study import recipe
from bertlab.study.recipe import CHANGES, recipe_config, recipe_records, recipe_table, run_recipes

FEW = ("muon", "no_biases", "growth", "neighbors", "geglu")


@pytest.fixture
def few_changes(monkeypatch, tmp_path):
    "Some changes, on little text, with costs that need no measuring."
    monkeypatch.setattr(recipe, "CHANGES", {name: CHANGES[name] for name in FEW})
    real = recipe.recipe_config

    def small(*args, **settings):
        config = real(*args, **settings)
        encoder = replace(config.encoder, d_model=16, heads=2, d_ff=16, layers=1)
        return replace(config, encoder=encoder, eval_sentences=40, train_fraction=0.01)

    monkeypatch.setattr(recipe, "recipe_config", small)
    monkeypatch.setattr(recipe, "measure_costs", lambda recipes, data: {name: 1.0 for name in recipes})
    return tmp_path


def test_all_changes_run_and_are_run_once(few_changes, capsys):
    records = run_recipes(few_changes, seeds=2, epochs=0.5)
    assert {r["row_id"] for r in records} - {"together"} == {"study", *FEW}
    assert all(r["tokens"] > 0 for r in records)
    table = recipe_table(recipe_records(few_changes))
    assert len(table) >= len(FEW) + 1 and table[0]["bits/char"] <= table[-1]["bits/char"]
    before = {p.name: p.read_bytes() for p in few_changes.glob("recipe_*.json")}
    capsys.readouterr()
    assert run_recipes(few_changes, seeds=2, epochs=0.5) == records
    assert capsys.readouterr().out.count("(done before)") == len(records)
    assert {p.name: p.read_bytes() for p in few_changes.glob("recipe_*.json")} == before


def test_records_of_other_settings_are_refused(few_changes):
    run_recipes(few_changes, seeds=2, epochs=0.2)
    with pytest.raises(BertlabError, match="other settings"):
        run_recipes(few_changes, seeds=2, epochs=0.3)


def test_costs_decide_how_long_a_change_trains():
    cheap, dear = (recipe_config(CHANGES["geglu"], cost) for cost in (0.5, 2.0))
    assert cheap.train.epochs == 4 * dear.train.epochs
    assert cheap.train.restart_epochs == cheap.train.epochs / 4


def test_costs_of_other_settings_are_refused(few_changes):
    run_recipes(few_changes, seeds=2, epochs=0.2)
    with pytest.raises(BertlabError, match=r"recipe_costs\.json: holds costs that were measured with other"):
        recipe.known_costs(few_changes, epochs=0.3)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "{", '{"config": [], "result": {}}'])
def test_a_damaged_record_of_costs_is_named(few_changes, text):
    (few_changes / "recipe_costs.json").write_text(text)
    with pytest.raises(BertlabError, match=r"recipe_costs\.json"):
        run_recipes(few_changes, seeds=2)


def test_records_of_other_kinds_are_left_alone(few_changes):
    run_recipes(few_changes, seeds=2, epochs=0.2)
    shutil.copy(few_changes / "recipe_costs.json", few_changes / "recipe_muon_old.json")
    assert "costs" not in {json.dumps(r.get("row_id")) for r in recipe_records(few_changes)}
