"""What is used where nothing is said, and two rules of the house: a number changed by mistake changes every result."""

import ast
import importlib
import inspect
from dataclasses import fields, is_dataclass

import pytest

from conftest import ROOT
from test_package import MODULES, name_of

DEFAULTS = {  # of the functions whose results are published
    "agents.double_dqn.DoubleDQN": dict(double=True, guide=None),
    "agents.judge.Judge": dict(narrow=48, widths=(384, 192), dropout=0.3),
    "agents.policy.IoULoss": dict(weight=1.0, rank_weight=0.0, band=(0.5, 0.85), gradient=True),
    "agents.policy.RegionPolicy": dict(region_width=64, dropout=0.0, judges=True),
    "agents.policy.RegionQNetwork": dict(region_width=64, dropout=0.0, judges=True, tied=False),
    "agents.policy.policy_kwargs": dict(net_arch=(512, 512), region_width=64, dropout=0.0, judges=True),
    "agents.predictions.choose": dict(progress=False),
    "envs.observation.ObservationConfig": dict(local_saliency=0, history=True, saliency=True),
    "evaluation.judging.average_precision_of": dict(overlap=0.4),
    "evaluation.judging.fit_judge": dict(
        seed=0, epochs=6, around=16, anywhere=8, of_passed=40, any_class=False, batch=512, learning_rate=1e-3
    ),
    "evaluation.judging.moving_or_judging": dict(overlap=0.4),
    "evaluation.multi.score_multi": dict(confidence="presence*iou", overlap=0.3),
    "evaluation.multi.suppress": dict(overlap=0.3),
    "evaluation.protocols.baselines": dict(max_steps=40, seed=0, threshold=0.5),
    "evaluation.protocols.evaluate": dict(confidence="presence*iou", max_steps=40),
}
CONSTANTS = {
    "agents.judge": dict(
        FINER_DIM=48, FINE=7, FINE_REACH=1.15, COARSE=3, AROUND=1.6, SHAPE=10, MAP=5, LEVELS=(0.3, 0.4, 0.5, 0.6, 0.7)
    ),
    "evaluation.judging": dict(NEAR=0.4),
    "vision.region_pooling": dict(LEAST=134_217_728),
}
SHOWN = {"pretrain", "iterate", "run_sweep", "train"}  # functions that take hours


def found(path):
    "The object at a path below `locrl`"
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"locrl.{module}"), name)


@pytest.mark.parametrize("path", DEFAULTS)
def test_what_is_used_where_nothing_is_said(path):
    parameters = inspect.signature(found(path)).parameters
    assert {name: parameters[name].default for name in DEFAULTS[path]} == DEFAULTS[path]


@pytest.mark.parametrize("module", CONSTANTS)
def test_numbers_that_results_depend_on(module):
    assert {name: found(f"{module}.{name}") for name in CONSTANTS[module]} == CONSTANTS[module]


def test_progress_is_shown_where_it_is_asked_for():
    "Only what takes hours shows it unasked"
    shown = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                named = [*node.args.args, *node.args.kwonlyargs]
                values = [*node.args.defaults, *node.args.kw_defaults]
                given = list(zip(named[len(named) - len(values) :], values))
                shown |= {node.name for a, v in given if a.arg == "progress" and getattr(v, "value", None) is not False}
    assert shown == SHOWN


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_records_of_arrays_are_frozen_and_compared_by_identity(path):
    "Arrays have no truth value, so `==` of two records would fail; and who is handed a record changes nothing in it"
    if "dataclass" not in path.read_text(encoding="utf-8"):
        return
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    here = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
    records = [kind for kind in here if isinstance(kind, type) and is_dataclass(kind)]
    for kind in records:
        parameters = kind.__dataclass_params__
        holds_arrays = any("ndarray" in str(field.type) for field in fields(kind))
        assert not holds_arrays or (parameters.frozen and not parameters.eq), kind
        assert parameters.frozen or path.parent.name not in ("agents", "envs", "evaluation"), kind
