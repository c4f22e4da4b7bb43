"The environment: Gymnasium's and SB3's checks, and the vectorised twin against single environments"

import subprocess
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_gymnasium
from hypothesis import given, settings, strategies as st
from stable_baselines3.common.env_checker import check_env as check_sb3

import locrl
from locrl.data.boxes import ACTIONS, FULL, TRIGGER, Moves, iou
from locrl.data.voc import DataError
from locrl.envs import localization
from locrl.vision.encoders import EfficientNetLite0
from locrl.envs.localization import LocalizationEnv, LocalizationVecEnv, Search, Targets
from locrl.vision.feature_store import build_store
from locrl.vision.region_pooling import FeatureBank, fit_prototypes
from locrl.envs.observation import HISTORY, KEY_SIZE, ObservationConfig, observe
from locrl.envs.rewards import named_reward
from locrl.data.scenes import Scenes

CLASSES = ("cat", "dog")
REWARDS = ("paper", "continuous", "centre", "potential")
FULL_VIEW = ObservationConfig(box=True, steps=True, local_saliency=5, grid=2)


@pytest.fixture(scope="module")
def data():
    return Scenes(20, seed=4, size=(64, 96), classes=(*CLASSES, "bird"))


@pytest.fixture(scope="module")
def bank(data, tmp_path_factory):
    store = build_store(data, EfficientNetLite0(input_size=64), dim=8, root=tmp_path_factory.mktemp("store"))
    return FeatureBank(store, CLASSES, prototypes=fit_prototypes(store, data, CLASSES))


@pytest.fixture(scope="module")
def targets(data):
    return Targets.of(data, CLASSES)


def invented(n=30, seed=0, empty=True):
    "Questions about up to three random boxes; with `empty`, about every fourth has none"
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((n, 3, 2, 2), np.float32), 2)
    boxes = corners.reshape(n, 3, 4) * (rng.random((n, 3, 1)) < 0.6)
    boxes[:, 0] = corners.reshape(n, 3, 4)[:, 0]
    if empty:
        boxes[::4] = 0
    return Targets(np.arange(n), rng.integers(0, 2, n), boxes.astype(np.float32))


# Registration and the checkers


@pytest.mark.parametrize("order", ["locrl, gymnasium", "gymnasium, locrl"])
def test_import_registers_the_environment(order):
    code = f"import {order}, sys\n"
    code += "print(gymnasium.spec('locrl/Localization-v0').entry_point, 'torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert answer == ["locrl.envs.localization:LocalizationEnv", "False"]


def test_made_by_name(data, bank):
    env = gym.make("locrl/Localization-v0", data=data, bank=bank, render_mode="rgb_array")
    assert isinstance(env.unwrapped, LocalizationEnv) and locrl.__version__
    obs, info = env.reset(seed=0)
    assert obs.shape == (8 + 100 + 256,) and obs in env.observation_space and info["class_name"] in CLASSES
    assert info["box"].tolist() == FULL.tolist()


def test_made_without_arguments():
    env = gym.make("locrl/Localization-v0")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (64 + 100 + 256,) and np.isfinite(obs).all()
    assert not env.step(0)[2]


@pytest.mark.parametrize(
    "config",
    [ObservationConfig(), FULL_VIEW, ObservationConfig(embedding=False, history=False)],
    ids=["default", "all", "saliency"],
)
@pytest.mark.parametrize("reward", REWARDS)
def test_checkers(data, bank, config, reward):
    env = gym.make(
        "locrl/Localization-v0",
        data=data,
        bank=bank,
        observation=config,
        reward=reward,
        render_mode="rgb_array",
        max_steps=7,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space (minimum|maximum) value is -?infinity")
        check_gymnasium(env.unwrapped)
        check_sb3(env.unwrapped)


def test_bad_arguments_are_named(data, bank):
    with pytest.raises(ValueError, match="needs bank=FeatureBank"):
        LocalizationEnv(data)
    with pytest.raises(ValueError, match="render_mode='ansi': use 'rgb_array', 'human' or None"):
        LocalizationEnv(data, bank, render_mode="ansi")
    with pytest.raises(ValueError, match="no reward called 'gold'"):
        LocalizationEnv(data, bank, reward="gold")
    with pytest.raises(DataError, match="holds no sofa"):
        Targets.of(data, ("sofa",))


def test_seed_and_options_decide_the_question(data, bank, targets):
    def asked(seed):
        env = LocalizationEnv(data, bank)
        first = env.reset(seed=seed)
        return [first[1]["image"]] + [env.reset()[1]["image"] for _ in range(10)], first[0]

    (a, x) = asked(1)
    (b, y) = asked(1)
    (c, _) = asked(2)
    assert a == b != c and np.array_equal(x, y)
    env = LocalizationEnv(data, bank, targets=targets)
    for k in (0, 3, len(targets) - 1):
        assert env.reset(options={"episode": k})[1]["image"] == targets.image[k]


def test_the_picture_shows_the_box(data, bank):
    env = LocalizationEnv(data, bank, render_mode="rgb_array")
    _, info = env.reset(seed=1)
    for action in (5, 5, 0, 3):
        _, _, _, _, info = env.step(action)
    picture = env.render()
    width, height = data.size(info["image"])
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    orange = (picture == np.array([213, 94, 0])).all(-1)
    rows, columns = np.flatnonzero(orange.any(1)), np.flatnonzero(orange.any(0))
    found = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    np.testing.assert_allclose(found, info["box"], atol=3 / 64)
    assert LocalizationEnv(data, bank).render() is None


# With Gymnasium's own tools


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_several_at_once(data, bank, mode):
    "Each of them plays as a single environment with the same seed and actions"
    many = gym.make_vec("locrl/Localization-v0", num_envs=3, vectorization_mode=mode, data=data, bank=bank)
    alone = [LocalizationEnv(data, bank) for _ in range(3)]
    seen, infos = many.reset(seed=5)
    expected = [env.reset(seed=5 + k) for k, env in enumerate(alone)]
    rng = np.random.default_rng(0)
    for _ in range(30):
        np.testing.assert_array_equal(seen, np.stack([obs for obs, _ in expected]))
        assert infos["image"].tolist() == [info["image"] for _, info in expected]
        assert infos["class_name"].tolist() == [info["class_name"] for _, info in expected]
        actions = rng.choice([a for a in range(10) if a != TRIGGER], 3)
        seen, rewards, terminated, truncated, infos = many.step(actions)
        played = [env.step(a) for env, a in zip(alone, actions)]
        assert rewards.tolist() == [reward for _, reward, *_ in played]
        assert not terminated.any() and not truncated.any()
        expected = [(obs, info) for obs, *_, info in played]
    many.close()


def test_environments_made_without_arguments_share_their_world():
    a, b = (gym.make("locrl/Localization-v0").unwrapped for _ in range(2))
    assert a.bank is b.bank and a.search is not b.search


def test_wrappers(data, bank):
    from gymnasium import wrappers

    env = gym.make("locrl/Localization-v0", data=data, bank=bank)
    size = env.observation_space.shape[0]
    assert wrappers.FrameStackObservation(env, 4).reset(seed=0)[0].shape == (4, size)
    assert abs(wrappers.NormalizeObservation(env).reset(seed=0)[0]).max() < 20
    counted = wrappers.RecordEpisodeStatistics(wrappers.TimeLimit(env, 5))
    counted.reset(seed=0)
    total = 0.0
    for _ in range(5):
        _, reward, _, truncated, info = counted.step(0)
        total += reward
    assert truncated and info["episode"]["l"] == 5 and info["episode"]["r"] == pytest.approx(total)
    doubled = wrappers.TransformReward(env, lambda r: 2 * r)
    doubled.reset(seed=0)
    plain = LocalizationEnv(data, bank)
    plain.reset(seed=0)
    assert doubled.step(5)[1] == 2 * plain.step(5)[1]


def test_seen_in_full(data, bank, targets):
    "Hundreds at once give what single environments give, the last observation of an episode included"
    config = ObservationConfig(local_saliency=5)
    many = localization.ObservedVecEnv(LocalizationVecEnv(Search(targets, 4, max_steps=7, seed=3)), bank, config)
    seen = many.reset()
    single = [LocalizationEnv(data, bank, config, targets=targets, max_steps=7) for _ in range(4)]
    expected = [e.reset(options={"episode": k})[0] for e, k in zip(single, many.venv.search.episode)]
    assert seen.shape[1:] == many.observation_space.shape and seen.dtype == np.float32
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_allclose(seen, np.stack(expected), atol=1e-5)
        actions = rng.integers(0, 10, 4)
        seen, rewards, dones, infos = many.step(actions)
        for i, env in enumerate(single):
            expected[i], reward, terminated, truncated, _ = env.step(actions[i])
            assert rewards[i] == pytest.approx(reward) and dones[i] == (terminated or truncated)
            if dones[i]:
                np.testing.assert_allclose(infos[i]["terminal_observation"], expected[i], atol=1e-5)
                expected[i] = env.reset(options={"episode": many.venv.search.episode[i]})[0]


def test_record_video(data, bank, tmp_path):
    "An episode becomes a film of its own, as long as the episode"
    pytest.importorskip("moviepy")
    av = pytest.importorskip("av")
    env = gym.make("locrl/Localization-v0", data=data, bank=bank, render_mode="rgb_array", max_steps=6)
    env = gym.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda k: True, disable_logger=True)
    for _ in range(2):
        env.reset(seed=0)
        while not env.step(5)[3]:
            pass
    env.close()
    films = sorted(tmp_path.glob("*.mp4"))
    assert len(films) == 2
    with av.open(str(films[0])) as container:
        assert len(list(container.decode(video=0))) == 7


def test_human_shows_every_step(data, bank, monkeypatch):
    env = LocalizationEnv(data, bank, render_mode="human")
    shown = []
    monkeypatch.setattr(env._screen, "show", shown.append)
    env.reset(seed=1)
    env.step(5)
    assert env.render() is None
    same = LocalizationEnv(data, bank, render_mode="rgb_array")
    same.reset(seed=1)
    np.testing.assert_array_equal(shown[0], same.render())
    same.step(5)
    np.testing.assert_array_equal(shown[1], same.render())
    assert len(shown) == 2


def test_a_notebook_shows_one_picture_that_moves(monkeypatch):
    "The first picture is displayed, and the others take its place"
    import IPython
    import IPython.display

    log = []

    class Handle:
        def update(self, image):
            log.append(("update", image.size))

    def display(image, display_id):
        log.append(("display", image.size))
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", display)
    screen = localization._Screen(fps=1000)
    for width in (30, 30, 50):
        screen.show(np.zeros((20, width, 3), np.uint8))
    screen.close()
    assert log == [("display", (30, 20)), ("update", (30, 20)), ("update", (50, 20))]


def test_a_window_elsewhere(monkeypatch):
    "Matplotlib draws it, no faster than the frame rate; without a screen nothing is shown and nothing fails"
    from matplotlib import pyplot

    screen, start = localization._Screen(fps=20), time.monotonic()
    for width in (30, 50):
        screen.show(np.full((20, width, 3), width, np.uint8))
    assert time.monotonic() - start >= 0.05
    assert screen.place.get_array().shape == (20, 50, 3) and screen.place.get_extent() == [0, 50, 20, 0]
    number = screen.place.figure.number
    assert pyplot.fignum_exists(number)
    screen.close()
    assert not pyplot.fignum_exists(number)


# What is asked


def test_targets_hold_what_the_annotations_say(data):
    for negatives in (False, True):
        asked = Targets.of(data, CLASSES, negatives=negatives)
        pairs = {(i, k): boxes for i, k, boxes in zip(asked.image, asked.label, asked.boxes)}
        assert len(pairs) == len(asked)
        for i in range(len(data)):
            a = data.annotation(i)
            for k, name in enumerate(CLASSES):
                boxes = a.boxes[(a.labels == data.classes.index(name)) & ~a.difficult]
                if not len(boxes) and not negatives:
                    assert (i, k) not in pairs
                else:
                    there = pairs[i, k]
                    assert np.array_equal(there[: len(boxes)], boxes) and not there[len(boxes) :].any()
        assert negatives or asked.positive.all()


def test_every_question_is_asked_once_a_round():
    search = Search(invented(10), n=4, seed=0)
    asked = []
    for _ in range(15):
        search.start()
        asked += search.episode.tolist()
    for round in range(6):
        assert sorted(asked[10 * round : 10 * round + 10]) == list(range(10))


# The game


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(REWARDS),
    st.sampled_from([Moves(), Moves(n_actions=9), Moves(border="keep_size"), Moves(alpha=0.5, min_side=0.1)]),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_the_vectorised_twin_plays_the_same_game(seed, reward, moves, max_steps, n):
    "Boxes, IoU, rewards, ends and keys of `n` searches side by side are those of `n` searches on their own"
    targets, rng = invented(12, seed), np.random.default_rng(seed)
    vec = LocalizationVecEnv(Search(targets, n, moves, named_reward(reward), max_steps, seed))
    singles = [Search(targets, 1, moves, named_reward(reward), max_steps) for _ in range(n)]
    keys = vec.reset()
    returns = np.zeros(n)
    lengths = np.zeros(n, int)
    for i, single in enumerate(singles):
        single.start(episode=vec.search.episode[i])
    for _ in range(2 * max_steps + 3):
        assert np.array_equal(keys, np.concatenate([s.keys for s in singles]))
        assert all(k in vec.observation_space for k in keys)
        actions = rng.integers(0, moves.n_actions, n)
        keys, rewards, dones, infos = vec.step(actions)
        for i, single in enumerate(singles):
            _, reward_i, terminated, truncated = single.step(actions[i : i + 1])
            returns[i], lengths[i] = returns[i] + reward_i[0], lengths[i] + 1
            assert reward_i[0] == rewards[i] and dones[i] == (terminated | truncated)[0]
            assert terminated[0] == (actions[i] == TRIGGER) and not (terminated & truncated)[0]
            if not dones[i]:
                assert infos[i] == {}
                continue
            assert (
                infos[i]["TimeLimit.truncated"] == truncated[0] == (lengths[i] == max_steps and actions[i] != TRIGGER)
            )
            assert np.array_equal(infos[i]["terminal_observation"], single.keys[0])
            assert infos[i]["episode"]["l"] == lengths[i] and infos[i]["episode"]["r"] == pytest.approx(
                returns[i], abs=1e-4
            )
            returns[i], lengths[i] = 0, 0
            single.start(episode=vec.search.episode[i])


@pytest.mark.parametrize("config", [ObservationConfig(), FULL_VIEW], ids=["default", "all"])
def test_observations_of_keys_are_those_of_the_environments(data, bank, targets, config):
    vec = LocalizationVecEnv(Search(targets, 5, seed=1, reward=named_reward("continuous")))
    keys, rng = vec.reset(), np.random.default_rng(0)
    envs = [LocalizationEnv(data, bank, config, reward="continuous", targets=targets) for _ in range(5)]
    seen = [e.reset(options={"episode": k})[0] for e, k in zip(envs, vec.search.episode)]
    for _ in range(60):
        np.testing.assert_allclose(observe(bank, torch.from_numpy(keys), config), np.stack(seen), atol=1e-5)
        actions = rng.integers(0, 10, 5)
        keys, rewards, dones, infos = vec.step(actions)
        for i, env in enumerate(envs):
            seen[i], reward, terminated, truncated, info = env.step(int(actions[i]))
            assert reward == rewards[i] and (terminated or truncated) == dones[i]
            assert info["iou"] == pytest.approx(env.search.iou[0])
            if dones[i]:
                seen[i], _ = env.reset(options={"episode": vec.search.episode[i]})


def test_time_is_up_by_truncation_and_a_trigger_terminates():
    search = Search(invented(1, empty=False), max_steps=3)
    search.start()
    ends = [search.step(np.array([a]))[2:] for a in (0, 1)]
    assert not np.any(ends)
    assert [x[0] for x in search.step(np.array([2]))[2:]] == [False, True]
    search.start()
    for a in (0, 1):
        search.step(np.array([a]))
    assert [x[0] for x in search.step(np.array([TRIGGER]))[2:]] == [True, False]  # at the last moment, still an answer


@pytest.mark.parametrize("reward", REWARDS)
def test_a_class_that_is_not_there(reward):
    "IoU is 0 throughout, a trigger costs the whole penalty, and no move wins"
    nothing = Targets(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros((2, 3, 4), np.float32))
    search, rng = Search(nothing, 2, reward=named_reward(reward)), np.random.default_rng(0)
    search.start()
    for _ in range(39):
        foreseen, pay = search.try_all()
        assert not foreseen.any() and (pay[:, TRIGGER] == -3).all() and np.isfinite(pay).all()
        assert (pay[:, np.arange(10) != TRIGGER] <= 0).all()
        after, paid, terminated, truncated = search.step(rng.integers(0, 8, 2))
        assert not after.any() and not (terminated | truncated).any()
    assert search.step(np.array([0, TRIGGER]))[3].tolist() == [True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(REWARDS))
def test_try_all_foresees_step_and_changes_nothing(seed, reward):
    rng = np.random.default_rng(seed)
    search = Search(invented(8, seed), 6, reward=named_reward(reward), seed=seed)
    search.start()
    for _ in range(12):
        keys = search.keys
        foreseen, pay = search.try_all()
        assert np.array_equal(keys, search.keys) and foreseen.shape == pay.shape == (6, 10)
        actions = rng.integers(0, 10, 6)
        after, paid, *_ = search.step(actions)
        np.testing.assert_allclose(foreseen[np.arange(6), actions], after, atol=1e-6)
        np.testing.assert_allclose(pay[np.arange(6), actions], paid, atol=1e-5)
        np.testing.assert_allclose(search.iou, iou(search.box[:, None], search.truth).max(1))


def test_keys_hold_the_newest_action_first():
    search = Search(invented(3, empty=False), 1, seed=0)
    search.start()
    for action in range(12):
        search.step(np.array([action % 8]))
    key = search.keys[0]
    assert key.shape == (KEY_SIZE,) and key.dtype == np.float32 and key[6] == 12
    assert key[7:].tolist() == [float(a % 8) for a in range(11, 1, -1)]
    assert np.array_equal(key[2:6], search.box[0])
    search.start()
    assert (search.keys[0, 7:] == -1).all() and len(search.keys[0, 7:]) == HISTORY


def test_the_best_overlap_counts():
    boxes = np.array([[[0, 0, 0.2, 0.2], [0.5, 0.5, 1, 1]]], np.float32)
    search = Search(Targets(np.zeros(1, int), np.zeros(1, int), boxes))
    search.start()
    for towards in range(2):
        search.box = boxes[:, towards].copy()
        assert search.iou[0] == pytest.approx(1) and search.step(np.array([TRIGGER]))[1][0] == 3


def test_random_starts_are_a_share_and_head_for_the_nearest_object():
    boxes = np.array([[[0, 0, 0.2, 0.2], [0.7, 0.7, 1, 1], [0, 0, 0, 0]]], np.float32)
    targets = Targets(np.zeros(1, int), np.zeros(1, int), boxes)
    search = Search(targets, 4000, reward=named_reward("potential"), seed=0, random_starts=0.3)
    search.start()
    inside = ~(search.box == FULL).all(1)
    assert abs(inside.mean() - 0.3) < 0.03 and (search.box >= 0).all() and (search.box <= 1 + 1e-6).all()
    search.box[:2] = [
        [0.3, 0.3, 0.5, 0.5],
        [0.45, 0.45, 0.65, 0.65],
    ]  # they overlap nothing; one is nearer to the first object, the other to the second
    rewards = search.try_all()[1][:2]
    left, right = ACTIONS.index("left"), ACTIONS.index("right")
    assert rewards[0, left] > 0 > rewards[0, right] and rewards[1, right] > 0 > rewards[1, left]


def test_without_random_starts_nothing_is_drawn():
    searches = [Search(invented(7), 4, seed=3, **kwargs) for kwargs in ({}, dict(random_starts=0.0))]
    for s in searches:
        s.start()
        s.start()
    assert (
        searches[0].rng.bit_generator.state == searches[1].rng.bit_generator.state and (searches[1].box == FULL).all()
    )


# States


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_a_saved_state_goes_on_exactly(seed, before):
    rng = np.random.default_rng(seed)
    vec = LocalizationVecEnv(Search(invented(7, seed), 4, max_steps=6, seed=seed))
    vec.reset()
    for _ in range(before):
        vec.step(rng.integers(0, 10, 4))
    state, actions = vec.state(), rng.integers(0, 10, (25, 4))

    def play(env):
        return (
            [(k.tolist(), r.tolist(), d.tolist()) for k, r, d, _ in map(env.step, actions)],
            env.finished,
            env.returns.tolist(),
        )

    first = play(vec)
    vec.load_state(state)
    assert play(vec) == first
    other = LocalizationVecEnv(Search(invented(7, seed), 4, max_steps=6, seed=seed + 1))
    other.load_state(state)
    assert play(other) == first


def test_sb3_sees_a_vec_env():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vec = LocalizationVecEnv(Search(invented(5), 3, seed=0))
    assert vec.num_envs == 3 and vec.render_mode is None and vec.env_is_wrapped(gym.Wrapper) == [False] * 3
    vec.seed(7)
    a = vec.reset()
    vec.seed(7)
    assert np.array_equal(a, vec.reset())
    assert vec.env_method("positive_actions", indices=0)[0].shape == (3, 10)
    assert vec.get_attr("num_envs", indices=[0, 1]) == [3, 3]


@pytest.mark.parametrize("share", [0, 0.4])
def test_guided_exploration_by_hand(share):
    """Guided exploration takes only moves that pay: a move that changes nothing earns 0 and is left out.
    TRIGGER gets its share beside the moves."""
    search = Search(invented(40), 40, reward=named_reward("potential"), seed=0, random_starts=0.5)
    vec = LocalizationVecEnv(search, share)
    vec.reset()
    paid, unchanged = search.try_all()[1], (search.moves.all(search.box) == search.box[:, None]).all(-1)
    unchanged[:, TRIGGER] = False
    assert unchanged.any() and (paid[unchanged] == 0).all()
    weights = vec.exploration_weights()
    seen = set()
    for row, pay in zip(weights, paid):
        good = [a for a in range(10) if pay[a] > 0]
        expected = np.zeros(10)
        expected[good] = 1
        others = [a for a in good if a != TRIGGER]
        if share and TRIGGER in good and others:
            expected[TRIGGER] = len(others) * share / (1 - share)
        np.testing.assert_allclose(row, expected)
        seen.add((TRIGGER in good, bool(others)))
    assert {(True, True), (False, True)} <= seen


@pytest.mark.parametrize(
    "actions, message",
    [
        ([-1, -2], "-1 is no action"),
        ([0, 10], "10 is no action"),
        ([0], "needs 2 integers"),
        ([[0, 1]], "needs 2 integers"),
        ([0.0, 1.0], "needs 2 integers, one for each episode, got float64"),
    ],
)
def test_actions_that_are_none(actions, message):
    "What is no action is refused before anything has changed"
    search = Search(Targets(np.zeros(1, int), np.zeros(1, int), np.array([[[0, 0, 0.5, 0.5]]], np.float32)), 2)
    search.start()
    before = search.state()
    with pytest.raises(ValueError, match=message):
        search.step(np.array(actions))
    assert all(np.array_equal(before[name], search.state()[name]) for name in ("box", "step_count", "history"))
    search.step(np.array([0, 1]))


def test_one_environment_after_bad_calls(data, bank):
    """The environment takes what SB3's `predict` gives for a batch of one as an action.
    After a refused call the episode goes on, and `reset` works."""
    env = LocalizationEnv(data, bank)
    env.reset(options={"episode": 0})
    env.step(np.array([0]))
    for bad in (10, -1, [0, 1], 1.5):
        with pytest.raises(ValueError, match="actions: "):
            env.step(bad)
    assert env.search.step_count[0] == 1
    for bad in (-1, 10**6):
        with pytest.raises(ValueError, match="there are queries 0 to "):
            env.reset(options={"episode": bad})
    env.step(1)
    env.reset()
    assert env.search.step_count[0] == 0


def test_spaces_by_hand():
    "What Stable-Baselines3 is told about keys and actions"
    env = LocalizationVecEnv(Search(invented(), 3, Moves(n_actions=9), max_steps=17))
    space = env.observation_space
    assert space.shape == (KEY_SIZE,) and env.action_space.n == 9 and env.num_envs == 3
    assert space.low.tolist() == [0] * 7 + [-1] * HISTORY
    assert space.high.tolist() == [2**24, 2**24, 1, 1, 1, 1, 17] + [9] * HISTORY
    assert env.seed(3) == [3] * 3 and env.env_is_wrapped(object) == [False] * 3
    assert env.get_attr("trigger_share") == [0.0] * 3


def test_random_windows_against_their_description():
    from locrl.envs.localization import random_windows

    boxes = random_windows(4000, np.random.default_rng(0))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.dtype == np.float32 and (boxes >= 0).all() and (boxes <= 1 + 1e-6).all()
    assert 0.2 - 1e-6 <= sides.min() < 0.21 and 0.99 < sides.max() <= 1 + 1e-6
    scale = np.sqrt(sides.prod(1))  # log-uniform over [.25, 1]: half of them below .5
    assert 0.45 < (scale < 0.5).mean() < 0.55
    assert 0.2 < np.abs(np.log(sides[:, 0] / sides[:, 1])).mean() < 0.26  # two draws of +-.35: mean distance .233
    corner = boxes[:, :2] / np.maximum(1 - sides, 1e-6)
    free = (sides < 0.95).all(1)
    assert np.abs(corner[free].mean(0) - 0.5).max() < 0.03 and corner[free].max() > 0.95


def test_returns_and_lengths_are_told_to_stable_baselines():
    env = LocalizationVecEnv(Search(invented(empty=False), 2, max_steps=3, reward=named_reward("paper")))
    env.reset()
    total = np.zeros(2)
    for step in range(3):
        _, reward, done, infos = env.step([0, 1])
        total += reward
        assert done.tolist() == [step == 2] * 2
    for k in range(2):
        assert infos[k]["episode"] == dict(r=pytest.approx(total[k]), l=3, t=0.0)
        assert infos[k]["TimeLimit.truncated"] is True and infos[k]["terminal_observation"][6] == 3
    assert [f[1:] for f in env.finished] == [(False, 3, pytest.approx(t)) for t in total]
    _, _, done, infos = env.step([TRIGGER, 0])
    assert done.tolist() == [True, False] and infos[0]["TimeLimit.truncated"] is False and infos[1] == {}
    assert infos[0]["episode"]["l"] == 1 and env.finished[-1][1:3] == (True, 1)


def test_no_picture_waits_for_one_before_the_first():
    "The first is due at once, the next after its share of a second, however long the clock has run"
    screen = localization._Screen(fps=4)
    assert screen.due <= 0
    before = time.monotonic()
    screen.show(np.zeros((2, 2, 3), np.uint8))
    assert before + 0.25 <= screen.due <= time.monotonic() + 0.25
    screen.close()


def test_keys_lie_within_their_space(data, bank):
    "From the first query to the last, at the borders, before any action and after all of them"
    space = LocalizationVecEnv(Search(Targets.of(data), n=2, seed=0)).observation_space
    first = np.float32([0, 0, 0, 0, 0, 0, 0, *[-1] * HISTORY])
    assert np.array_equal(space.low, first) and space.contains(first)
    assert space.contains(np.float32([9, 1, 1, 1, 1, 1, 40, *[9] * HISTORY]))


def test_an_environment_without_arguments_is_always_the_same(monkeypatch):
    "Scenes of seed 0, so that what is tried on one machine can be tried on another"
    from locrl.data import scenes

    class AskedError(Exception):
        pass

    def asked(n, seed):
        raise AskedError(n, seed)

    monkeypatch.setattr(scenes, "Scenes", asked)
    with pytest.raises(AskedError) as made:
        localization._default_world.__wrapped__()
    assert made.value.args == (64, 0)
