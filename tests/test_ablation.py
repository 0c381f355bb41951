"""The ablation: its settings, its commands, and how it runs them, without a training."""

import json
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts/ablation"
CONFIGS = sorted((ROOT / "user_dir_examples/ablation").glob("*.yaml"))
TINY = ROOT / "user_dir_examples/ablation/tiny.yaml"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def read(*overrides, path=TINY):
    return import_module("settings").read_settings(path, overrides)


def make_steps(*overrides, path=TINY):
    return import_module("steps").Steps(read(*overrides, path=path), *map(Path, "cgd"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["update=3"], "'update' not in 'Settings'"),
        (["rows.a.memroy=true"], "'memroy' not in 'Row'"),
        (["finetuning.seed=3"], "'seed' not in 'Finetuning'"),
        (["updates=many"], "'many'"),
        (["updates=0"], "updates 0 is below 1: raise it"),
        (["rows.g.title=new"], "rows.g.lr is missing: give it"),
        (["seeds=[1,1]"], "each once"),
        (["rows.f.seeds=[]"], "rows.f.seeds []: give at least one"),
        (["rows.f.seeds=[1,3]"], "row f has seeds [3], which a lacks: give rows.a.seeds"),
        (["finetuning.tasks.COLA=3"], "COLA is not a GLUE task: choose among CoLA, "),
        (["rows.b.start_from=f"], "row b starts from f: name a row that stands before it"),
        (["rows.b.model.pkm_subkeys=3"], "row b has options of a memory: add memory: true"),
        (["rows.d.updates=0"], "row d has no updates: give pretrained, and the row no start_from"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, reason):
    with pytest.raises(ValueError, match="tiny.yaml: ") as error:
        read(*overrides)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rows", "a,z"], "--rows z is no row: choose among a, b, c, d, e, f"),
        ([], "--corpus is missing: give the folder"),
        (["--corpus", "no/such"], "--corpus no/such is not a folder"),
        (["--corpus", "/", "--only", "pretraining"], "--corpus / has no train.txt or train.txt.gz"),
    ],
)
def test_the_command_refuses_what_it_was_given_wrong(
    arguments, reason, tmp_path, monkeypatch, capsys
):
    command = ["run.py", TINY, *arguments, "--dest", tmp_path / "dest"]
    monkeypatch.setattr("sys.argv", [*map(str, command)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit:
        import_module("run").main()
    assert exit.value.code == f"error: {reason}"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_fairseq_takes_every_command_of_a_shipped_config(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    steps = make_steps(path=path)
    import_module("run").check_commands(steps.pretrainings(steps.settings.rows))


def test_an_option_that_fairseq_does_not_know_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    steps = make_steps("rows.f.model.pkm_typo=1")
    with pytest.raises(ValueError, match=r"f\.1: .* unrecognized arguments: --pkm-typo 1"):
        import_module("run").check_commands(steps.pretrainings(["f"]))


def options_of(step):
    """Returns the flags of a command, and what follows each."""
    pairs = zip(step.command, [*step.command[1:], ""])
    return {name: value for name, value in pairs if name.startswith("--")}


def test_models_take_as_many_tokens_as_a_sample_has_or_as_is_said():
    for given, positions in ([], "32"), (["max_positions=99"], "99"):
        steps = make_steps(*given)
        assert options_of(steps.pretraining("a", 1))["--max-positions"] == positions
        assert f"task.max_positions={positions}" in steps.finetuning("a", 1, "CoLA", 1).command


def test_a_row_goes_on_from_another_with_other_sentences():
    steps = make_steps("seeds=[1,2]")
    dense, memory = steps.pretraining("a", 2), steps.pretraining("f", 2)
    assert options_of(memory)["--pkm-init-from"] == "d/a.2/checkpoint_last.pt"
    assert "a.2" in memory.needs
    assert "--pkm-init-from" not in options_of(dense)
    assert (options_of(dense)["--seed"], options_of(memory)["--seed"]) == ("2", "102")
    names = [step.name for step in steps.pretrainings(["f"])]
    assert names == [
        *("data", "a.1", "a.1.valid", "a.2", "a.2.valid"),
        *("f.1", "f.1.valid", "f.1.empty", "f.1.without"),
        *("f.2", "f.2.valid", "f.2.empty", "f.2.without"),
    ]


def test_a_row_may_have_seeds_of_its_own_and_trains_no_more_of_what_it_starts_from():
    steps = make_steps("rows.a.seeds=[1,2,3]", "rows.f.seeds=[1,2]")
    names = [step.name for step in steps.pretrainings(["e", "f"])]
    trained = [name for name in names if len(name) == 3]
    assert trained == ["a.1", "e.1", "a.2", "f.1", "f.2"]


def make_results(ppls, not_run=()):
    """Results of row a with a perplexity for each seed, and three finetunings of each."""
    shared = {"row": "a", "title": "dense", "updates": 20, "lr": 0.1, "parameters": 3}
    runs = [
        {**shared, "seed": seed, "ppl": ppl, "history": {}, "CoLA": [1.0, ppl, 50.0 * seed]}
        for seed, ppl in enumerate(ppls, 1)
    ]
    settings = {"finetuning": {"tasks": {"CoLA": 6}}, "rows": {"a": None}}
    return {"settings": settings, "data": {}, "not_run": [*not_run], "runs": runs}


def test_the_table_has_the_validation_of_each_seed_and_the_median_of_finetunings():
    make_table = import_module("output").make_table
    results = make_results([120.0, 99.5])
    assert "| (a) dense | 20 | 0.1 | 3 | 120.0 / 99.5 |" in make_table(results)
    # Of 1, 120, 50 and 1, 99.5, 100.
    assert "| 74.8 | 1.0 to 120.0 |" in make_table(results)
    results["runs"][0]["pkm_worth"], results["runs"][1]["pkm_worth"] = 0.04321, -0.0012
    header, _, row, *_ = make_table(results).splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | ")))
    assert cells["worth"] == "0.0432 / -0.0012"
    del results["runs"][1]["CoLA"]
    assert " to " not in make_table(results), "a seed is not finetuned yet"
    assert "120.0" not in make_table(make_results([120.0], ["a"]))


def test_a_run_is_a_line_of_the_results():
    results = make_results([120.0, 99.5])
    text = import_module("output").as_json(results)
    assert json.loads(text)["runs"][1]["ppl"] == 99.5
    assert [line for line in text.splitlines() if '"ppl": 120.0' in line and '"seed": 1' in line]
    assert "history" not in text


def test_a_row_that_goes_on_from_a_memory_keeps_it():
    new = ["rows.g.title=on", "rows.g.start_from=f", "rows.g.lr=1", "rows.g.memory=true"]
    options = options_of(make_steps(*new).pretraining("g", 1))
    assert options["--finetune-from-model"] == "d/f.1/checkpoint_last.pt"
    assert "--pkm-init-from" not in options
    assert options["--seed"] == "201"


def test_rows_start_from_pretrained_weights_and_their_text_is_cut_as_theirs(tmp_path):
    for file in ("model.pt", "dict.txt", "tokenizer.json"):
        (tmp_path / file).touch()
    steps = make_steps(f"pretrained={tmp_path}", "rows.d.updates=0")
    model, tokenizer = str(tmp_path / "model.pt"), str(tmp_path / "tokenizer.json")
    assert options_of(steps.pretraining("a", 1))["--pkm-init-from"] == model
    assert options_of(steps.pretraining("f", 1))["--pkm-init-from"] == "d/a.1/checkpoint_last.pt"
    for step in (steps.data(), steps.glue_data("CoLA")):
        assert options_of(step)["--tokenizer-json"] == tokenizer
        assert "--vocab-size" not in options_of(step)
        assert "--sentencepiece-model" not in options_of(step)
    assert options_of(steps.data())["--dict"] == str(tmp_path / "dict.txt")
    # (d) is finetuned as it was imported, its memory new.
    assert [step.name for step in steps.pretrainings(["d"])] == ["data"]
    tuned = {step.name: step for step in steps.finetunings(["d"])}
    assert f"checkpoint.finetune_from_model={model}" in tuned["d.1.CoLA.1"].command
    assert tuned["d.1.CoLA.1"].needs == ("glue.CoLA",)
    assert "d.1.CoLA.drift" not in tuned
    assert "a.1.CoLA.1.without" not in {step.name for step in steps.finetunings(["a"])}


def test_finetuned_models_are_scored_without_what_their_memories_hold():
    tuned = {step.name: step for step in make_steps().finetunings(["d"])}
    options = options_of(tuned["d.1.CoLA.2.without"])
    assert options["--path"] == "d/d.1.CoLA.2.empty/checkpoint.pt"
    assert options["--task"] == options["--criterion"] == "pkm_sentence_prediction"
    assert options["--num-classes"] == "2"
    assert tuned["d.1.CoLA.2.without"].needs == ("d.1.CoLA.2.empty",)
    assert "d/d.1.CoLA.2/checkpoint_best.pt" in tuned["d.1.CoLA.2.empty"].command


def test_a_folder_may_have_a_name_in_which_hydra_would_read_more():
    steps = import_module("steps").Steps(read(), *map(Path, ("c", "g", "runs/lr=0.1")))
    tuned = {step.name: step for step in steps.finetunings(["d"])}
    assert "checkpoint.save_dir='runs/lr=0.1/d.1.CoLA.1'" in tuned["d.1.CoLA.1"].command


def test_fairseq_takes_the_commands_of_finetunings(monkeypatch):
    from fairseq import options
    from fairseq.dataclass.initialize import hydra_init
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from tests.test_glue_configs import CONFIGS as GLUE_CONFIGS
    from tests.test_glue_configs import compose, initialize_config_dir

    tuned = {step.name: step for step in make_steps().finetunings(["d"])}
    _, _, folder, _, name, *overrides = tuned["d.1.CoLA.1"].command
    assert ROOT / folder == GLUE_CONFIGS
    Plugins.instance()  # registers Hydra's own parts, once
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", dict(store.repo))  # what is registered here stays here
    hydra_init(name)
    with initialize_config_dir(config_dir=str(GLUE_CONFIGS)):
        config = compose(name, overrides=overrides)
    assert config.model.pkm_subkeys == 16
    assert config.optimization.max_update == 10
    scoring = [*tuned["d.1.CoLA.1.without"].command[1:]]
    args = options.parse_args_and_arch(options.get_validation_parser(), scoring)
    assert (args.num_classes, args.max_positions) == (2, 32)


def write_step(dest, name, log=""):
    folder = dest / name
    folder.mkdir()
    machine = {"device": "some", "threads": 1, "commit": "abc"}
    (folder / "done.json").write_text(json.dumps({"seconds": 3.5, "machine": machine}))
    (folder / "log").write_text(log)


def test_figures_of_finetunings_are_read_once_all_of_their_seeds_are_done(tmp_path):
    steps = import_module("steps").Steps(read(), Path("c"), Path("g"), tmp_path)
    results = import_module("results").Results(steps.settings, steps)
    write_step(tmp_path, "d.1", "num. shared model params: 1,234 (num. trained: 1,234)")
    write_step(tmp_path, "d.1.valid", '| valid | {"valid_ppl": "12.5", "valid_pkm_kl": "0.7"}')
    write_step(tmp_path, "d.1.without", '| valid | {"valid_ppl": "13.5"}')
    write_step(tmp_path, "d.1.CoLA.1", '"valid_mcc": "8.5"\n"valid_mcc": "7.5"')
    (run,) = results.collect()["runs"]
    expected = {"row": "d", "seed": 1, "updates": 20, "lr": 0.002, "parameters": 1234, "ppl": 12.5}
    expected.update(pkm_kl=0.7, ppl_values_zero=13.5, seconds=3.5, device="some", commit="abc")
    assert expected.items() <= run.items()
    assert not any(figure.startswith("CoLA") for figure in run)
    write_step(tmp_path, "d.1.CoLA.2", '"valid_mcc": "1.5"\n"valid_mcc": "9.5"')
    for number, score in ((1, "0.5"), (2, "-1")):
        write_step(tmp_path, f"d.1.CoLA.{number}.without", f'| valid | {{"valid_mcc": "{score}"}}')
    write_step(tmp_path, "d.1.CoLA.drift")
    reports = [{"figures": {"pkm_drift": drift}} for drift in (None, 0.25, None, 0.75)]
    report = json.dumps({"checkpoints": reports})
    (tmp_path / "d.1.CoLA.drift/report.json").write_text(report)
    collected = results.collect()
    (run,) = collected["runs"]
    assert (run["CoLA"], run["CoLA_values_zero"]) == ([8.5, 9.5], [0.5, -1.0])
    assert run["CoLA_drift"] == [0.25, 0.75]
    assert collected["not_run"] == [*"abcef"]


def test_rows_differ_in_what_they_say_alone():
    steps = make_steps()
    dense, plain, residual = (options_of(steps.pretraining(name, 1)) for name in "acd")
    assert dense["--pkm-layers"] == ""
    own = {"--save-dir", "--tensorboard-logdir"}
    differ = {name for name in plain if plain[name] != residual.get(name)}
    assert differ == own | {"--pkm-mode"}
    differ = {name for name in residual if residual[name] != dense.get(name)}
    assert all(name.startswith("--pkm") for name in differ - own)


def test_all_rows_are_validated_on_the_same_masks():
    steps = make_steps()
    validations = [steps.validation(name, 1) for name in "abcdef"]
    validations += [[*steps.without_memory(name, 1)][1] for name in "cdef"]
    assert len({options_of(step)["--seed"] for step in validations}) == 1


class Work:
    """Steps that write a line each, with a runner to run them."""

    def __init__(self, folder):
        self.folder, self.dest = folder, folder / "dest"
        self.steps = []

    def add(self, name, code="pass", **options):
        code = f"open({str(self.folder / 'ran')!r}, 'a').write({name + chr(10)!r}); {code}"
        command = (sys.executable, "-c", code)
        self.steps.append(import_module("steps").Step(name, "kind", command, **options))

    def runner(self):
        return import_module("runner").Runner(
            self.dest, self.steps, dict, {sys.executable: "PYTHON"}
        )

    def ran(self):
        return (self.folder / "ran").read_text().split()


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("runner"), "SECONDS_OF_WAITING", 0.01)
    return Work(tmp_path)


def test_steps_run_once_and_after_those_they_need(work):
    work.add("second", needs=("first",))
    work.add("first")
    assert work.runner().run() == []
    assert work.runner().run() == []
    assert work.ran() == ["first", "second"]
    record = json.loads((work.dest / "first/done.json").read_text())
    assert record["command"].startswith("PYTHON -c ")
    assert record["seconds"] > 0


def test_what_does_not_need_a_step_that_fails_runs_all_the_same(work, capsys):
    work.add("bad", "raise SystemExit('no such thing')")
    work.add("after", needs=("bad",))
    work.add("good")
    assert work.runner().run() == ["bad", "after"]
    assert work.ran() == ["bad", "bad", "good"], "a step is tried twice"
    assert f"bad failed: no such thing (see {work.dest / 'bad/log'})" in capsys.readouterr().out


def test_two_processes_share_the_steps(work):
    for i in range(4):
        work.add(f"step{i}", "import time; time.sleep(0.2)")
    threads = [threading.Thread(target=work.runner().run) for _ in range(2)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(work.ran()) == [f"step{i}" for i in range(4)]
    seconds = [json.loads(path.read_text())["seconds"] for path in work.dest.glob("*/done.json")]
    assert time.monotonic() - start < sum(seconds)


def test_what_was_made_by_another_command_is_not_taken_for_ours(work):
    work.add("step")
    work.add("speed", may_change=True)
    work.runner().run()
    old, work.steps = work.steps, []
    work.add("step", "print(1)")
    work.add("speed", "print(1)", may_change=True)
    with pytest.raises(ValueError, match=r"dest/step was made by another command.*another --dest"):
        work.runner()
    work.steps = [old[0], work.steps[1]]
    work.runner().run()
    assert work.ran() == ["step", "speed", "speed"]


def test_it_says_how_far_it_is(work, capsys, monkeypatch):
    monkeypatch.setattr(import_module("runner"), "SECONDS_BETWEEN_LINES", 0.3)
    work.add("first", "import time; print('loss 5.2', flush=True); time.sleep(0.9)")
    work.add("second")
    work.runner().run()
    printed = capsys.readouterr().out
    assert "first: kind; 2 of 2 steps left\n" in printed
    assert "first: loss 5.2\n" in printed
    assert "second: kind; 1 of 2 steps left\n" in printed
