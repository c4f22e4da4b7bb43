"""One photograph's way: read, encode, search, choose, answer, in this order, downwards; few modules, nothing heavy."""

import json
import os
import subprocess
import sys

import pytest

from locrl.apps.localizer import EXAMPLE
from test_package import BESIDE, place

MOST_MODULES = 14
UPWARD = set()  # calls from a lower room to a higher one that are meant: (from, to); none
HEAVY = {"scipy", "matplotlib", "stable_baselines3", "torchvision", "open_clip", "pandas", "sklearn", "tensorboard"}
HEAVY |= {"torch._dynamo", "torch.utils.tensorboard"}

TRACED = """
import json, sys

calls = []


def room(frame):
    name = frame.f_globals.get("__name__", "")
    return name.removeprefix("locrl.") if name.startswith("locrl.") and "." in name[6:] else None


def note(frame, event, argument):
    if event == "call" and (callee := room(frame)):
        caller = frame.f_back
        while caller is not None and room(caller) is None:
            caller = caller.f_back
        if caller is not None:
            calls.append((room(caller), callee, frame.f_code.co_name))


from locrl.apps.cli import main

sys.argv = ["locrl", *json.loads(sys.argv[1])]
sys.setprofile(note)
try:
    main()
except SystemExit as end:
    assert not end.code
finally:
    sys.setprofile(None)
rooms = [name for name in sys.modules if name.startswith("locrl.") and not hasattr(sys.modules[name], "__path__")]
print(json.dumps(dict(rooms=sorted(rooms), loaded=sorted(sys.modules), calls=calls)))
"""


def traced(*arguments, **environment):
    "What `locrl` with these arguments loads and calls"
    command = [sys.executable, "-c", TRACED, json.dumps(arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    return said, json.loads(last)


@pytest.fixture(scope="module")
def one():
    return traced("locate", str(EXAMPLE), "the cats")


def upward(calls):
    "The calls that go to a higher floor, or to a later room of the same floor"
    beside = {*BESIDE, "_modidx"}
    pairs = {(caller, callee) for caller, callee, _ in calls} - UPWARD
    return {(a, b) for a, b in pairs if not {a, b} & beside and place(b) > place(a)}


def test_few_modules_are_loaded_and_nothing_heavy(one):
    said, found = one
    assert said[0].startswith("cat: ")
    assert len(found["rooms"]) <= MOST_MODULES, found["rooms"]
    assert not HEAVY & {*found["loaded"]} and "locrl.agents.search" in found["rooms"]


def test_no_call_goes_up(one):
    "Seen by the profiler in every call of the command, from reading the picture to the answer"
    calls = one[1]["calls"]
    assert not upward(calls)
    assert {("apps.cli", "apps.localizer"), ("apps.localizer", "agents.search")} <= {(a, b) for a, b, _ in calls}


def test_the_order_is_read_encode_search_choose(one):
    "Each stage begins when the one before it has ended"
    names = [(callee, name) for _, callee, name in one[1]["calls"]]
    stages = [
        ("data.voc", "open_image"),
        ("vision.encoders", "both"),
        ("agents.search", "search"),
        ("agents.predictions", "choose"),
    ]
    first = [names.index(stage) for stage in stages]
    last = [len(names) - 1 - names[::-1].index(stage) for stage in stages]
    assert all(ended < begun for ended, begun in zip(last, first[1:]))
    assert names.count(stages[1]) == 1  # for both layers that the judge sees


def test_no_call_of_a_search_for_all_goes_up():
    "From windows, as the packed agent searches: nothing is marked"
    _, found = traced("locate", str(EXAMPLE), "a cat", "--all")
    assert not upward(found["calls"])


def test_the_profiler_would_see_a_call_upwards():
    "Without this the test above could pass by seeing nothing"
    assert upward([("agents.search", "apps.localizer", "f"), ("apps.localizer", "agents.search", "g")]) == {
        ("agents.search", "apps.localizer")
    }
