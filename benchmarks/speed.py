"""Speed and memory of locrl beside the usual way, in one run.

The script prints a Markdown table and writes it, with machine, versions and seed, to results/benchmarks/speed.json.
Everything is measured on composed Scenes, so it runs anywhere; the features are encoded once and stay in the cache.
Both sides of every comparison get the same torch threads: one, unless --threads says otherwise (on a busy machine more
are slower).
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from tqdm.auto import tqdm

from locrl.data.boxes import TRIGGER
from locrl.files import write_atomic
from locrl.envs.localization import LocalizationEnv, LocalizationVecEnv, Search, Targets
from locrl.envs.observation import KEY_SIZE, ObservationConfig, observe
from locrl.agents.policy import RegionPolicy, attach, policy_kwargs
from locrl.envs.rewards import named_reward
from locrl.experiments.config import named_config, prepare
from locrl.experiments.train import demonstrations, make_model, versions

SEED = 0
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


def cpu_model() -> str:
    "The processor's name"
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resident() -> int | None:
    "Bytes of memory this process holds, where the system tells"
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def machine(threads: int) -> dict:
    "What a measurement was made on"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return dict(
        cpu=cpu_model(),
        cores=os.cpu_count(),
        torch_threads=threads,
        system=f"{platform.system()} {platform.machine()}",
        load_average_at_start=load,
    )


def described(command: str, about: dict, start: float, results: dict) -> dict:
    "What was run, where, with what, and what came out"
    minutes = round((time.monotonic() - start) / 60, 2)
    return dict(command=command, machine=about, versions=versions(), seed=SEED, minutes=minutes, results=results)


def write(path: Path, command: str, about: dict, start: float, results: dict):
    "Write the results file"
    content = described(command, about, start, results)
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {path.name} after {content['minutes']} minutes", file=sys.stderr)


def command_line(about: str, name: str, measure, table, **options: tuple[int, str]):
    """Parse `options` (default and help of each, whole numbers) and measure with them.
    Print the table and write results/benchmarks/`name`.json."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, (default, text) in (options | dict(threads=(1, "torch threads"))).items():
        parser.add_argument(
            f"--{option.replace('_', '-')}", type=int, default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"{name}.json",
        help=f"file of the results (default results/benchmarks/{name}.json)",
    )
    given = vars(parser.parse_args())
    out, threads = given.pop("out"), given["threads"]
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    here, start = machine(threads), time.monotonic()
    results = measure(*(given[option] for option in options))
    print("\n" + table(results))
    write(
        out,
        " ".join(
            [
                f"python benchmarks/{name}.py",
                *(f"--{option.replace('_', '-')} {value}" for option, value in given.items()),
            ]
        ),
        here,
        start,
        results,
    )


def markdown(rows: list[tuple[str, str, str]]) -> str:
    "A table of what was measured and what was hoped for"
    return "\n".join(["| what | measured | target |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def rate(work, units: int, seconds: float) -> float:
    "Units a second: the median over calls of `work`, which does `units` of them, for `seconds` after a warm-up"
    work()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return units / float(np.median(times))


def geometry(targets: Targets, n: int = 1024) -> dict:
    "(a) Steps a second of `n` searches: boxes, IoU, reward and restarts; and with all that SB3 wants to know"
    rng = np.random.default_rng(SEED)
    actions = rng.integers(0, 10, (64, n))
    search, turn = Search(targets, n, reward=named_reward("potential"), seed=SEED), iter(range(10**9))
    search.start()

    def play():
        _, _, terminated, truncated = search.step(actions[next(turn) % 64])
        search.start(np.flatnonzero(terminated | truncated))

    vec = LocalizationVecEnv(Search(targets, n, reward=named_reward("potential"), seed=SEED))
    vec.reset()
    return dict(search=rate(play, n, 2), vec_env=rate(lambda: vec.step(actions[next(turn) % 64]), n, 2), searches=n)


def visited(targets: Targets, n: int) -> torch.Tensor:
    "State keys (n, 17) that random searches pass through"
    rng = np.random.default_rng(SEED)
    search = Search(targets, 64, seed=SEED)
    keys = []
    search.start()
    while len(keys) * 64 < n:
        actions = rng.integers(0, 9, 64)
        _, _, _, truncated = search.step(actions + (actions >= TRIGGER))
        search.start(np.flatnonzero(truncated | (rng.random(64) < 0.1)))
        keys.append(search.keys)
    return torch.from_numpy(np.concatenate(keys)[:n])


def observations(bank, keys: torch.Tensor, config: ObservationConfig) -> dict:
    "(b) Observations a second: all keys at once, and in a loop over single ones"
    few = keys[:64]
    return dict(
        size=config.size(bank.dim),
        batch=len(keys),
        together=rate(lambda: observe(bank, keys, config), len(keys), 3),
        one_at_a_time=rate(lambda: [observe(bank, few[i : i + 1], config) for i in range(len(few))], len(few), 2),
    )


class CropEnv(LocalizationEnv):
    "The usual way: every step cuts the box out of the picture and runs the network on it, a batch of one"

    def __init__(self, data, bank, encoder):
        self.encoder, self.shown = encoder, None
        super().__init__(data, bank, ObservationConfig(embedding=False), reward="potential")
        self.observation_space = spaces.Box(-np.inf, np.inf, (encoder.dim + self.config.size(bank.dim),), np.float32)

    def _observe(self):
        image = int(self.search.targets.image[self.search.episode[0]])
        if image != self.shown:
            self.shown, self.picture = image, self.data.image(image)
        region = self.encoder.embed_crops([self.picture], self.search.box)[0].numpy()
        return np.concatenate([region, super()._observe()])


def ours(world) -> dict:
    "Transitions a second of collecting and learning as `train` does it"
    config, model = world.config, make_model(world, SEED)
    model._setup_learn(config.learning.steps)
    quiet = CallbackList([])
    quiet.init_callback(model)

    def turn():
        model.collect_rollouts(
            model.env, quiet, model.train_freq, model.replay_buffer, learning_starts=config.learning.learning_starts
        )
        model.train(config.learning.gradient_steps, config.learning.batch_size)

    for _ in range(5):
        turn()
    return dict(
        per_second=rate(turn, config.learning.n_envs, 8),
        envs=config.learning.n_envs,
        updates=config.learning.gradient_steps,
        batch_size=config.learning.batch_size,
    )


def usual(world) -> dict:
    """Return transitions a second of SB3's DQN on `CropEnv`.
    It has one environment, one update for each transition, and full observations in the replay buffer."""
    config = world.config
    env = CropEnv(world.data["train"], world.banks["train"], world.encoder)
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=config.learning.learning_rate,
        buffer_size=5_000,
        learning_starts=32,
        batch_size=100,
        train_freq=1,
        gradient_steps=1,
        gamma=config.learning.gamma,
        seed=SEED,
        device="cpu",
        policy_kwargs=dict(net_arch=list(config.network.net_arch)),
    )
    model.learn(64)
    return dict(
        per_second=rate(lambda: model.learn(32, reset_num_timesteps=False), 32, 10),
        envs=1,
        updates=1,
        batch_size=100,
        crop_size=world.encoder.crop_size,
    )


def update(world, rounds: int = 15) -> dict:
    """(f) Return milliseconds of one update, with everything on.
    SB3's DQN with the same network, features and batch is measured in turn."""
    config = world.config.replace(
        {
            "replay.n_steps": 3,
            "replay.alpha": 0.6,
            "demonstrations.ratio": 0.25,
            "demonstrations.margin_weight": 1.0,
            "learning.iou_weight": 1.0,
            "learning.rank_weight": 0.1,
            "demonstrations.episodes": 500,
        }
    )
    full = make_model(world.under(config), SEED)
    full.replay_buffer.add_demonstrations(
        **demonstrations(
            Search(world.targets, config.demonstrations.episodes, config.moves, named_reward(config.reward), seed=SEED)
        )
    )
    plain = DQN(
        RegionPolicy,
        LocalizationVecEnv(
            Search(world.targets, config.learning.n_envs, config.moves, named_reward(config.reward), seed=SEED)
        ),
        buffer_size=config.replay.buffer_size,
        learning_rate=config.learning.learning_rate,
        gamma=config.learning.gamma,
        seed=SEED,
        device="cpu",
        policy_kwargs=policy_kwargs(
            world.projection.dim, config.observation, config.network.net_arch, config.network.region_width
        ),
    )
    attach(plain.policy, world.banks["train"])
    quiet, times = CallbackList([]), {full: [], plain: []}
    for model in times:
        model._setup_learn(10_000)
        quiet.init_callback(model)
        model.collect_rollouts(
            model.env, quiet, TrainFreq(40, TrainFrequencyUnit.STEP), model.replay_buffer, learning_starts=10**9
        )
        model.train(4, config.learning.batch_size)
    for _ in range(rounds):
        for model in times:
            start = time.perf_counter()
            model.train(4, config.learning.batch_size)
            times[model].append((time.perf_counter() - start) * 1e3 / 4)
    everything, usual = (float(np.median(t)) for t in times.values())
    return dict(
        everything=everything,
        sb3_dqn=usual,
        ratio=everything / usual,
        batch_size=config.learning.batch_size,
        observation=config.observation.size(world.projection.dim),
    )


def memory(sizes: dict[str, int], transitions: int = 1_000_000) -> dict:
    "(d) Bytes of a replay buffer of keys, every page touched, and of full observations, measured on a hundredth of it"

    def allocate(size, n):
        buffer = ReplayBuffer(
            n, spaces.Box(-np.inf, np.inf, (size,), np.float32), spaces.Discrete(10), device="cpu", n_envs=128
        )
        arrays = [x for x in vars(buffer).values() if isinstance(x, np.ndarray)]
        for x in arrays:
            x.fill(1)
        return arrays, sum(x.nbytes for x in arrays) / (buffer.buffer_size * 128)

    before = resident()
    held, each = allocate(KEY_SIZE, transitions)
    out = dict(transitions=transitions, keys_bytes=each * transitions)
    if before is not None:
        out["keys_resident_bytes"] = resident() - before
    del held
    return out | {f"{name}_bytes": allocate(size, transitions // 100)[1] * transitions for name, size in sizes.items()}


def episode(world) -> dict:
    """(e) Return milliseconds to embed the 40 boxes of an episode, one after another.
    They are pooled from the picture's feature map, and cut out and encoded."""
    bank, encoder = world.banks["train"], world.encoder
    picture = world.data["train"].image(0)
    search = Search(world.targets[:1], 1)
    rng = np.random.default_rng(SEED)
    search.start(episode=0)
    boxes = []
    for _ in range(40):
        boxes.append(search.box.copy())
        search.step(rng.integers(0, 8, 1))
    tensors, first = [torch.from_numpy(b)[None] for b in boxes], torch.zeros(1, dtype=torch.long)

    def milliseconds(work):
        return 1e3 / rate(work, 1, 2)

    return dict(
        pool_40=milliseconds(lambda: [bank.pool(first, b) for b in tensors]),
        dense_once=milliseconds(lambda: encoder.encode([picture])),
        crops_40=milliseconds(lambda: [encoder.embed_crops([picture], b) for b in boxes]),
    )


def measure(n_images: int, input_size: int) -> dict:
    "All measurements"
    config = named_config("animals-5").replace(
        {
            "name": "speed",
            "data.train": f"scenes:train:{n_images}",
            "encoder.input_size": input_size,
            "data.flip": False,
            "learning.learning_starts": 1,
            "replay.buffer_size": 50_000,
        }
    )
    with tqdm(total=8, desc="features", unit="part") as bar:

        def part(name, result):
            bar.update()
            bar.set_description(name)
            return result

        world = part("geometry", prepare(config))
        bank = world.banks["train"]
        keys = visited(world.targets, 1024)
        default = ObservationConfig()
        out = dict(geometry=part("observations", geometry(world.targets)))
        out["observations"] = part(
            "training",
            {"default": observations(bank, keys, default), "training": observations(bank, keys, config.observation)},
        )
        fast = part("training, the usual way", ours(world))
        slow = part("an update", usual(world))
        out["update"] = part("memory", update(world))
        out["training"] = dict(locrl=fast, usual_way=slow, ratio=fast["per_second"] / slow["per_second"])
        out["replay"] = part(
            "an episode's embeddings",
            memory(
                dict(default_observation=default.size(bank.dim), training_observation=config.observation.size(bank.dim))
            ),
        )
        out["episode"] = part("done", episode(world))
    return out


def table(results: dict) -> str:
    "Markdown"
    g, o, t, u, r, e = (results[k] for k in ("geometry", "observations", "training", "update", "replay", "episode"))
    pooled, dense, crops = (e[k] for k in ("pool_40", "dense_once", "crops_40"))
    rows = [
        ("environment, steps/s (1,024 searches: boxes, IoU, rewards, restarts)", f"{g['search']:,.0f}", "200,000"),
        ("the same through the SB3 `VecEnv`, steps/s", f"{g['vec_env']:,.0f}", ""),
    ]
    for name, x in o.items():
        rows += [
            (
                f"observations/s from the store, {name} ({x['size']} numbers, 1,024 a batch)",
                f"{x['together']:,.0f}",
                "20,000",
            ),
            ("one box at a time", f"{x['one_at_a_time']:,.0f}", ""),
        ]
    rows += [
        ("training (collect and learn), transitions/s", f"{t['locrl']['per_second']:,.0f}", ""),
        (
            "the usual way: every crop encoded at batch 1, one environment, an update a step",
            f"{t['usual_way']['per_second']:,.1f}",
            "",
        ),
        ("times as fast per transition", f"{t['ratio']:,.0f}", "20"),
        (f"an update with everything on (batch {u['batch_size']}), ms", f"{u['everything']:.1f}", ""),
        ("an update of SB3's DQN, same network and batch, ms", f"{u['sb3_dqn']:.1f}", ""),
        ("times as costly", f"{u['ratio']:.2f}", "1.5 at most"),
        ("replay of 1,000,000 transitions as keys, GB", f"{r['keys_bytes'] / 1e9:.2f}", "below 1"),
        ("the same as full observations (training), GB", f"{r['training_observation_bytes'] / 1e9:.1f}", ""),
        ("embeddings of a 40-step episode by pooling, ms", f"{pooled:.1f} + {dense:.0f} once a picture", ""),
        (
            "the same by encoding 40 crops, ms",
            f"{crops:,.0f} ({crops / (pooled + dense):.0f} times; {crops / pooled:.0f} from the store)",
            "",
        ),
    ]
    return markdown(rows)


if __name__ == "__main__":
    command_line(
        __doc__,
        "speed",
        measure,
        table,
        images=(200, "Scenes to encode"),
        input_size=(448, "pixels of the encoder's square input; 448 gives a 14 x 14 grid"),
    )
