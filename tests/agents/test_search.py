"""The one search against an explicit loop: side by side, from windows, with restarts, without a stop; its format."""

import hashlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locrl.agents.policy import RegionPolicy, attach, policy_kwargs
from locrl.agents.predictions import predict
from locrl.agents.search import SEARCH_FORMAT, RegionNetwork, SearchPolicy, Steps, evidence_inside, search
from locrl.data.boxes import FULL, TRIGGER, Moves
from locrl.envs.localization import LocalizationVecEnv, Search, Targets
from locrl.envs.observation import HISTORY, ObservationConfig
from locrl.evaluation.multi import CORNERS, attended_regions
from locrl.vision.region_pooling import FeatureBank, integral_image

OBSERVATION = ObservationConfig(saliency=False, local_saliency=4, grid=2, box=True, steps=True)
TRIGGER_BIAS = -0.4
WINDOWS = np.float32([[0, 0, 1, 1], [0, 0, 0.6, 0.6], [0.3, 0.2, 0.9, 1]])


class Maps(FeatureBank):
    "Feature maps, saliency and presence drawn at random"

    def __init__(self, n=6, dim=5):
        rng = np.random.default_rng(1)
        self.classes = ("cat", "dog")
        self.dim = dim
        self.device = "cpu"
        self.integral = integral_image(torch.from_numpy(rng.normal(size=(n, 7, 6, dim)).astype(np.float32)))
        self.saliency = torch.from_numpy(rng.random((n, 2, 16, 16)).astype(np.float32))
        self.presence = self.saliency.amax((2, 3)) * 0.9


def random_policy(trigger=TRIGGER_BIAS, dim=5) -> SearchPolicy:
    "A policy of random weights; `trigger` is added to the Q-value of TRIGGER"
    policy, rng = SearchPolicy(dim, OBSERVATION, net_arch=(24, 24), region_width=3), np.random.default_rng(0)
    with torch.no_grad():
        for weight in policy.q_net.parameters():
            size = tuple(weight.shape)
            weight.copy_(
                torch.from_numpy(rng.normal(size=size) * 2 / size[-1] ** 0.5 if len(size) > 1 else np.zeros(size))
            )
        policy.q_net.q_net[-1].bias[TRIGGER] += trigger
    return policy


def queries(n=6):
    "Every picture and both classes"
    return np.repeat(np.arange(n), 2), np.tile([0, 1], n)


@pytest.fixture(scope="module")
def policy():
    "A policy of which some searches trigger and some do not"
    made = random_policy()
    assert 0.2 < predict(made, Maps(), *queries()).triggered.mean() < 0.95
    return made


def played(policy, bank, image, label, start, max_steps, stop=True):
    "One episode by an explicit loop: (time, box, action, Q-values, predicted IoU) of each step"
    box, history, out = start.copy(), [-1] * HISTORY, []
    for t in range(max_steps):
        key = torch.tensor([[image, label, *box, t, *history[:HISTORY]]], dtype=torch.float32)
        with torch.no_grad():
            q, believed = (x[0].numpy() for x in policy.q_net.predict_all(key, bank))
        order = np.argsort(-q, kind="stable")
        action = int(order[0]) if stop or order[0] != TRIGGER else int(order[1])
        out.append((t, box, action, q, float(believed)))
        if action == TRIGGER:
            break
        box, history = Moves().apply(box, action), [action, *history]
    return out


def agree(steps, episode):
    "Compare steps with what `played` gave"
    assert len(steps) == len(episode)
    for k, (t, box, action, q, believed) in enumerate(episode):
        assert (steps.time[k], steps.action[k]) == (t, action)
        np.testing.assert_allclose(steps.box[k], box, atol=1e-6)
        np.testing.assert_allclose(steps.q_values[k], q, atol=1e-4)
        assert steps.iou[k] == pytest.approx(believed, abs=1e-5)


@pytest.mark.parametrize("stop", [True, False])
def test_every_episode_is_the_one_of_a_plain_loop(policy, stop):
    bank, (image, label) = Maps(), queries()
    steps = search(policy, bank, image, label, max_steps=25, starts=WINDOWS, stop=stop, batch=5)
    assert steps.triggered.any() == stop
    for k in range(len(image)):
        for window, start in enumerate(WINDOWS):
            mine = steps[(steps.query == k) & (steps.episode == window)]
            agree(mine, played(policy, bank, image[k], label[k], start, 25, stop))


def test_rows_are_in_order(policy):
    "Query after query, of a query episode after episode, of an episode step after step"
    steps = search(policy, Maps(), *queries(), max_steps=25, starts=WINDOWS, batch=5)
    order = np.lexsort((steps.time, steps.episode, steps.query))
    np.testing.assert_array_equal(order, np.arange(len(steps)))
    np.testing.assert_array_equal(steps.query[steps.first], np.arange(12))
    np.testing.assert_array_equal(np.repeat(steps.first, steps.count) + steps.step, np.arange(len(steps)))


def test_restarts_go_on_until_the_budget_is_used_up(policy):
    "Each episode is the plain one from its window; the last may be cut short"
    bank, (image, label) = Maps(), queries()
    steps = search(policy, bank, image, label, max_steps=9, restarts=WINDOWS[1:], total_steps=40)
    np.testing.assert_array_equal(steps.count, np.full(12, 40))
    for k in range(len(image)):
        mine = steps[steps.query == k]
        for episode in range(mine.episode.max() + 1):
            start = FULL if not episode else WINDOWS[1:][(episode - 1) % 2]
            some = mine[mine.episode == episode]
            whole = played(policy, bank, image[k], label[k], start, 9)
            agree(some, whole[: len(some)])
            assert len(some) == len(whole) or episode == mine.episode.max()


class Diary:
    "Marks that are only noted: which copy, which box"

    def __init__(self, bank, image):
        self.image, self.marks, self.device, self.dim = np.asarray(image), [], bank.device, bank.dim
        self.presence, self.saliency = bank.presence[self.image], bank.saliency[self.image]
        self.integral, self.pool = bank.integral[self.image], lambda i, b: bank.pool(torch.from_numpy(self.image)[i], b)

    def mark(self, which, boxes):
        self.marks += [(int(self.image[w]), tuple(b)) for w, b in zip(which, boxes)]


def test_every_trigger_is_marked_and_nothing_else(policy):
    bank, diaries = Maps(), []

    def marked(bank, image):
        diaries.append(Diary(bank, image))
        return diaries[-1]

    image, label = queries()
    how = dict(max_steps=9, restarts=CORNERS, total_steps=40, batch=7)
    steps = search(policy, bank, image, label, marked=marked, **how)
    stops = steps[steps.triggered]
    wanted = sorted((int(image[q]), tuple(b)) for q, b in zip(stops.query, stops.box))
    assert sorted(m for d in diaries for m in d.marks) == wanted and wanted
    plain = search(policy, bank, image, label, **how)
    np.testing.assert_array_equal(steps.action, plain.action)  # marks that change nothing change nothing
    np.testing.assert_allclose(steps.presence, bank.presence.numpy()[image[steps.query], label[steps.query]])
    evidence = evidence_inside(bank, image[steps.query], label[steps.query], steps.box)
    np.testing.assert_allclose(steps.evidence, evidence, atol=1e-6)
    assert plain.presence is None and plain.evidence is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.integers(1, 15))
def test_neither_order_nor_batch_matters(seed, n, batch):
    "Any queries in any order, the same one more than once among them"
    policy, bank, rng = random_policy(), Maps(), np.random.default_rng(seed)
    image, label = rng.integers(0, 6, n), rng.integers(0, 2, n)
    every = search(policy, bank, *queries(), max_steps=12)
    some = search(policy, bank, image, label, max_steps=12, batch=batch)
    for k in range(n):
        mine, same = some[some.query == k], every[every.query == 2 * image[k] + label[k]]
        np.testing.assert_array_equal(mine.action, same.action)
        np.testing.assert_allclose(mine.box, same.box, atol=1e-6)
        np.testing.assert_allclose(mine.q_values, same.q_values, atol=1e-4)


def test_no_query_gives_no_step(policy):
    steps = search(policy, Maps(), np.zeros(0, int), np.zeros(0, int))
    assert len(steps) == 0 and len(steps.first) == 0 and steps.box.shape == (0, 4) and steps.q_values.shape == (0, 10)


def test_the_path_up_to_a_row(policy):
    "Is the episode from its first box, and the box after the last action"
    steps = search(policy, Maps(), *queries(), max_steps=20, starts=WINDOWS)
    for row in range(0, len(steps), 7):
        path, boxes = steps.path(row, Moves())
        assert len(path) == steps.time[row] + 1 and path.time[0] == 0 and len(boxes) == len(path) + 1
        np.testing.assert_array_equal(boxes[:-1], path.box)
        np.testing.assert_array_equal(boxes[-1], Moves().apply(path.box[-1], path.action[-1]))


def test_the_best_row_of_each_query():
    "By hand: the earliest of equal ones"
    n = 7
    zero = np.zeros(n, int)
    steps = Steps(np.array([0, 0, 0, 1, 1, 2, 2]), zero, zero, np.zeros((n, 4)), zero, np.zeros((n, 10)), np.zeros(n))
    assert steps.best(np.array([1.0, 3, 3, 5, 4, -2, -1])).tolist() == [1, 3, 6]


def test_arguments_that_do_not_go_together_are_refused(policy):
    for wrong in (
        dict(restarts=CORNERS),
        dict(total_steps=50),
        dict(restarts=CORNERS, total_steps=50, starts=WINDOWS),
    ):
        with pytest.raises(ValueError, match="belong together"):
            search(policy, Maps(), *queries(), **wrong)


def test_a_search_leaves_the_policy_as_it_was(policy):
    "No attribute of the network is set, no weight and no mode changed"
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    attributes = set(vars(policy.q_net))
    search(policy, Maps(), *queries(), max_steps=5)
    assert set(vars(policy.q_net)) == attributes and not policy.q_net.training
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


@pytest.mark.parametrize("region_width, dropout, judges", [(3, 0.0, True), (0, 0.3, False)])
def test_the_network_that_searches_is_the_one_that_learns(region_width, dropout, judges):
    "The weights of a `RegionPolicy` load, and give the same search; the learner has dropout off while it searches"
    bank = Maps()
    targets = Targets(np.zeros(1, np.int64), np.zeros(1, np.int64), np.float32([[[0.1, 0.1, 0.6, 0.7]]]))
    env = LocalizationVecEnv(Search(targets, 1))
    options = policy_kwargs(bank.dim, OBSERVATION, (16, 16), region_width, dropout, judges)
    learner = RegionPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **options)
    looker = SearchPolicy(bank.dim, OBSERVATION, 10, (16, 16), region_width, dropout, judges)
    looker.load_state_dict(learner.state_dict())
    learner.set_training_mode(True)
    one, other = (search(p, bank, *queries(), max_steps=15) for p in (learner, looker))
    for field in fields(Steps):
        if getattr(one, field.name) is not None:
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)
    keys = torch.tensor([[0.0, 1, 0, 0, 1, 1, 0] + [-1] * HISTORY])
    attach(learner, bank)
    torch.testing.assert_close(learner.q_net(keys), looker.q_net(keys, bank))


def test_a_network_that_searches_is_never_in_training_mode():
    assert not RegionNetwork(5, OBSERVATION, dropout=0.5).training


def digest(*arrays) -> str:
    "SHA-256 of integers, and of boxes rounded to 4 decimals"
    h = hashlib.sha256()
    for x in arrays:
        h.update(np.round(np.asarray(x, np.float64) * 10_000).astype(np.int64).tobytes())
    return h.hexdigest()[:16]


def tiny_results():
    "Digest of the boxes and actions of tiny searches of each kind, and sums of their numbers"
    bank, policy, asked = Maps(), random_policy(), queries()
    plain = search(policy, bank, *asked, max_steps=15)
    windows = search(policy, bank, *asked, max_steps=8, starts=WINDOWS)
    marks = attended_regions(policy, bank, *asked, max_steps=15, total_steps=60)
    choices = [predict(policy, bank, *asked, max_steps=15, choice=choice) for choice in ("stop", "surest")]
    boxes = digest(
        plain.box,
        plain.action,
        windows.box,
        windows.action,
        marks.box,
        marks.terminal,
        marks.episode,
        *(p.box for p in choices),
        *(p.steps for p in choices),
    )
    numbers = [plain.q_values, plain.iou, windows.q_values, marks.iou, marks.presence, marks.evidence]
    numbers += [x for p in choices for x in (p.q_trigger, p.iou, p.presence, p.evidence)]
    return boxes, [float(np.mean(x)) for x in numbers]


FORMAT, BOXES, NUMBERS = (
    1,
    "20db4638dfcf9ac4",
    [
        -0.065028,
        0.691711,
        -0.086783,
        0.632783,
        0.889134,
        0.353305,
        1.605999,
        0.814531,
        0.895887,
        0.490083,
        1.386235,
        0.849021,
        0.895887,
        0.489188,
    ],
)


def test_the_format_is_raised_when_a_search_comes_out_otherwise():
    "Kept results are keyed by `SEARCH_FORMAT`: searches that changed must not be taken for those of before"
    boxes, numbers = tiny_results()
    same = boxes == BOXES and np.allclose(numbers, NUMBERS, rtol=1e-4)
    advice = f"FORMAT, BOXES, NUMBERS = {SEARCH_FORMAT}, {boxes!r}, {[round(x, 6) for x in numbers]}"
    assert same or SEARCH_FORMAT > FORMAT, (
        "searches come out otherwise than before: if that is meant, raise SEARCH_FORMAT in locrl.agents.search, "
        f"so that kept results are made anew, and write down the new digest here: {advice}"
    )
    assert same and SEARCH_FORMAT == FORMAT, f"SEARCH_FORMAT was raised: write down the new digest here: {advice}"
