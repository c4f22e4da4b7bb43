"""Sweeps: which trials there are, what failures, kills and interruptions leave, where they run; verdicts."""

import json
import multiprocessing
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from locrl.experiments import diagnostics
from locrl.experiments import iterate as iteration
from locrl.experiments import sweep
from locrl.experiments.config import CONFIGS, Config, ConfigError, prepare
from locrl.experiments.iterate import SweepError, iterate
from locrl.experiments.iterations import ITERATIONS, find_config, rises
from locrl.experiments.sweep import (
    Progress,
    parse_values,
    run_here,
    run_on_ray,
    run_sweep,
    sweep_table,
    trials,
    with_values,
)
from locrl.experiments.train import load_checkpoint, train
from tiny import TINIEST, no_film

TINY = TINIEST.replace({"learning.steps": 320})


@pytest.fixture(autouse=True, scope="module")
def tiny(film_left_out):
    "The base configuration `tiny`"
    CONFIGS["tiny"] = TINY
    yield
    del CONFIGS["tiny"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The runs as they are when nothing happens: seeds 0 and 1"
    world, root = prepare(TINY), tmp_path_factory.mktemp("whole")
    return [train(TINY, seed, root, world, progress=False) for seed in (0, 1)]


def same_weights(a, b):
    x, y = load_checkpoint(a), load_checkpoint(b)
    return all(torch.equal(v, y["model"]["policy"][k]) for k, v in x["model"]["policy"].items())


FIELDS = {
    "learning.learning_rate": st.floats(1e-6, 1, allow_subnormal=False),
    "learning.gamma": st.floats(0, 0.99),
    "replay.n_steps": st.integers(1, 9),
    "exploration.guided": st.booleans(),
    "observation.grid": st.integers(0, 3),
    "network.net_arch": st.lists(st.integers(1, 512), min_size=1, max_size=3),
    "evaluation.confidence": st.sampled_from(["q_trigger", "presence", "presence*iou"]),
}


@given(st.fixed_dictionaries({}, optional=FIELDS), st.randoms())
def test_a_name_says_what_differs_and_nothing_else(values, random):
    config = with_values(TINY, values)
    for field, value in values.items():
        got = config
        for part in field.split("."):
            got = getattr(got, part)
        assert got == (tuple(value) if isinstance(value, list) else value)
    shuffled = dict(random.sample(list(values.items()), len(values)))
    assert with_values(TINY, shuffled) == config
    differ = [f for f in values if with_values(TINY, {f: values[f]}) != TINY]
    assert (config.name == "tiny") == (not differ) and all(f"{f}=" in config.name for f in differ)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "text, words",
    [
        ("name=other", "cannot be set"),
        ("learning_rte=1", "no field 'learning_rte'"),
        ("observation.gird=1", "no field 'observation.gird'"),
        ("learning.gamma.x=1", "no field 'learning.gamma.x'"),
        ("observation=1", "set one of them"),
        ("learning.learning_rate=fast", "learning_rate='fast': must be a finite number"),
        ("learning.batch_size=1.5", "must be a whole number"),
        ("learning.double=1", "must be True or False"),
        ("learning.gamma=1.5", "must lie in [0, 1)"),
        ("reward=gold", "gold"),
        ("learning.gamma", "write FIELD=VALUE"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(text, words):
    with pytest.raises(ConfigError) as e:
        field, values = parse_values(text)
        trials("tiny", values={field: values})
    assert words in str(e.value)


def test_trials_are_the_product_and_the_iterations_own_runs(tmp_path):
    runs = trials(
        "tiny", ["v11", "v12"], 2, {"learning.learning_rate": [1e-4, 8e-4], "learning.gamma": [0.5, 0.8, 0.5]}, tmp_path
    )
    assert len(runs) == 2 * 2 * 2 * 2 == len({t.folder for t in runs}) and [t.seed for t in runs] == [0] * 8 + [1] * 8
    own = trials(
        "tiny", ["v11"], 1, {"learning.learning_rate": [find_config("tiny/v11").learning.learning_rate]}, tmp_path
    )
    assert [t.folder for t in own] == [tmp_path / "tiny/v11/seed-0"]
    with pytest.raises(ConfigError, match="at least 1"):
        trials("tiny", seeds=0)
    with pytest.raises(ConfigError, match="known are paper"):
        trials("tiny", ["v99"])
    with pytest.raises(ConfigError, match="share the folder"):
        trials("tiny", values={"data.train": ["scenes:train:24", "scenes:train:25", "scenes;train:25"]})


def little_process(*args):
    "What a child runs, without the film"
    diagnostics.filmstrip = no_film
    in_process(*args)


def slow_process(*args):
    "The same, slow enough to be watched: each validation takes longer than a look does"

    def slow_film(episode, n):
        time.sleep(2)
        return no_film(episode, n)

    diagnostics.filmstrip = slow_film
    in_process(*args)


in_process = sweep._in_process


def test_killed_failed_and_interrupted_trials(whole, tmp_path, monkeypatch):
    "A trial is killed by the system, interrupted by Ctrl-C, then goes on; another fails; a finished one is left alone"
    monkeypatch.setattr(sweep, "_in_process", little_process)
    monkeypatch.setattr(sweep, "cores", lambda: 1)
    stopped, taken, finished, _ = trials("tiny", seeds=2, values={"learning.gamma": [0.9, 0.5]}, root=tmp_path)
    train(finished.config, 1, tmp_path, prepare(TINY), progress=False)
    before = (finished.folder / "manifest.json").stat().st_mtime_ns
    taken.folder.parent.mkdir(parents=True)
    taken.folder.write_text("in the way")
    shots = []

    def kill(running, failed):
        if not shots:
            shots.extend(child.kill() for child in multiprocessing.active_children() if child.name == str(stopped))

    errors = run_here([stopped, taken], 1, tell=kill)
    assert (
        errors.keys() == {stopped, taken} and "exit code -9" in errors[stopped] and "FileExistsError" in errors[taken]
    )

    def interrupt(running, failed):
        if stopped.step:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_in_process", slow_process)
    with pytest.raises(KeyboardInterrupt):
        run_here([stopped], tell=interrupt)
    assert not multiprocessing.active_children() and 0 < stopped.step < TINY.learning.steps and not stopped.finished
    taken.folder.unlink()
    taken.folder.mkdir()
    (taken.folder / "config.json").write_text(json.dumps(dict(config=TINY.to_dict(), seed=7)))
    runs = [stopped, taken, finished]
    again = run_sweep(runs, 1, progress=False)
    assert again.keys() == {taken} and "holds another run" in again[taken] and stopped.finished
    assert (finished.folder / "manifest.json").stat().st_mtime_ns == before and same_weights(stopped.folder, whole[0])
    text = str(sweep_table(runs, again))
    assert (
        "| tiny | 2 of 2 |" in text
        and "| tiny/learning.gamma=0.5 | 0 of 1 |" in text
        and text.rstrip(" |").endswith("1")
    )


def test_a_folder_of_another_run_and_pictures_that_are_not_there(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_here", lambda *args, **kwargs: pytest.fail("nothing can be trained"))
    train(TINY, 0, tmp_path, prepare(TINY), stop_after=1, progress=False)
    monkeypatch.setitem(CONFIGS, "tiny", with_values(TINY, {"learning.gamma": 0.3}))
    monkeypatch.setenv("LOCRL_DATA", str(tmp_path / "nowhere"))
    other = [sweep.Trial(TINY.replace({"learning.gamma": 0.3}), 0, tmp_path)]
    gone = trials("animals-5", seeds=1, root=tmp_path)
    errors = run_sweep(other + gone, progress=False)
    assert "holds another run (learning.gamma: 0.9 -> 0.3)" in errors[other[0]] and errors[gone[0]].startswith(
        "DataError"
    )


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(device="abacus"), "abacus"),
        (dict(processes=0), "at least 1"),
        (dict(ray="nonsense"), "write HOST:PORT"),
        (dict(ray="127.0.0.1:1"), "nobody answers"),
        (dict(ray="127.0.0.1:99999"), "nobody answers"),
    ],
)
def test_what_can_be_known_is_known_before_anything_is_encoded(asked, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_encode", lambda *args: pytest.fail("pictures are encoded"))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    with pytest.raises(ConfigError, match=words):
        run_sweep(trials("tiny", seeds=1, root=tmp_path), progress=False, **asked)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        run_sweep(trials("tiny", seeds=1, root=tmp_path / "file"), progress=False)


def test_progress_counts_all(whole, capsys):
    done = trials("tiny", seeds=3, root=whole[0].parents[1])
    bar = Progress(done)
    bar({done[2]: 160}, failed=1, again=2)
    assert bar.bar.n == 2 * 320 + 160 and bar.bar.total == 3 * 320
    assert "2 finished; 1 failed; 2 picked up again; tiny seed 2 at 160" in capsys.readouterr().err


def test_an_iteration_to_its_verdict(tmp_path, monkeypatch):
    config, world = find_config("tiny/v13"), prepare(TINY)
    asked = dict(on="tiny", out=tmp_path / "results", root=tmp_path / "runs", progress=False)
    trained = []

    def here(runs, *args, **kwargs):
        for t in runs:
            if not t.finished:
                trained.append(train(t.config, t.seed, t.root, world.under(t.config), progress=False))
        return {}

    monkeypatch.setattr(iteration, "run_sweep", here)
    monkeypatch.setitem(ITERATIONS, "v13", replace(ITERATIONS["v13"], criterion=rises("hit_rate")))
    result, verdict, file = iterate("v13", seeds=2, **asked)
    assert verdict.passed is None and file == tmp_path / "results/v13-efficientnet_lite0.json"
    assert (
        json.loads(file.read_text()) == json.loads(json.dumps(result))
        and result["seeds"] == [0, 1]
        and len(trained) == 2
    )
    assert (
        result["command"] == "locrl iterate v13 --on tiny --seeds 2 --split report"
        and {"one_shot", "tr", "aar"} <= result["metrics"]["seeds"][0].keys()
    )
    for folder in trained:
        assert (file.parent / f"v13-{folder.name}.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()

    former = json.loads(file.read_text())  # the iteration before was much better
    for m in former["metrics"]["seeds"]:
        m["hit_rate"] = 0.9 + 0.01 * m["seed"]
    (file.parent / "v12-efficientnet_lite0.json").write_text(json.dumps(former))
    with monkeypatch.context() as m:
        m.setattr(iteration, "run_sweep", lambda *args, **kwargs: pytest.fail("nothing is missing"))
        again, verdict, _ = iterate("v13", seeds=2, **asked)
    assert again == json.loads(file.read_text()) and verdict.passed is False and "0.905 ->" in str(verdict)

    assert (
        iterate("v13", seeds=3, split="select", **asked | dict(multi=False))[0]["data"]["report"] == config.data.select
    )
    assert [f.name for f in trained] == ["seed-0", "seed-1", "seed-2"] and (
        file.parent / "v13-efficientnet_lite0-select.json"
    ).exists()
    assert iterate("v13", seeds=3, confidence="q_trigger", **asked)[0]["seeds"] == [0, 1, 2] and len(trained) == 3
    with pytest.raises(ConfigError, match="is of another configuration"):
        iterate("v13", **asked | dict(on="demo"))
    with pytest.raises(ConfigError, match="use 'report' or 'select'"):
        iterate("v13", split="test", **asked)
    monkeypatch.setattr(iteration, "run_sweep", lambda runs, *args, **kwargs: {runs[1]: "OSError: disk full"})
    with pytest.raises(SweepError, match="tiny/v12 seed 1: OSError: disk full"):
        iterate("v12", **asked | dict(out=tmp_path / "other"))


def test_without_ray_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "locrl\[ray\]"'):
        run_on_ray(trials("tiny", root=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared disk", "checkpoints travel"])
def test_a_lost_node_of_a_ray_cluster(whole, tmp_path, shared):
    "Two nodes, a trial on each; one is killed after its first validation, and its trial goes on where it was"
    pytest.importorskip("ray", reason='needs Ray: pip install "locrl[ray]"')
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    second = cluster.add_node(num_cpus=1)
    runs = trials("tiny", seeds=2, root=tmp_path / "runs")
    seen = []

    def watch(running, failed, again):
        seen.append((dict(running), again))
        if len(running) == 2 and not again and second in cluster.worker_nodes:
            threading.Thread(target=cluster.remove_node, args=[second, False]).start()

    try:
        errors = run_on_ray(runs, "test", cluster.address, None if shared else str(tmp_path / "storage"), tell=watch)
    finally:
        cluster.shutdown()
    assert not errors and all(t.finished for t in runs)
    assert seen[-1][1] == 1, "one trial was picked up again"
    back = [[steps[t] for steps, _ in seen if t in steps] for t in runs]
    assert all(steps == sorted(steps) for steps in back), "no trial began anew"
    for t, folder in zip(runs, whole):
        assert same_weights(t.folder, folder)
