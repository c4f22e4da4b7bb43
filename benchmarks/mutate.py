"""Small faults put into the core modules one at a time: do the tests notice?

    python benchmarks/mutate.py                          # 16 faults a module, 300 in all; hours, and resumed
    python benchmarks/mutate.py --each 2 --stages own    # a taste
    python benchmarks/mutate.py --again                  # only those that nobody noticed, after tests were added

A fault is one operator, comparison or constant of one line, chosen at random (seed 0). It is made in a copy of the
tree, in the exported module and in the notebook that exports it. The module's own tests run, the quickest first, until
one fails; where none does, the other tests of its wing, and then the notebook. A fault is noticed when something fails
or does not end in time. Faults that make no difference are in mutate_same.json, each with the reason; they are not run.
Writes results/benchmarks/mutate.json after every fault, with each one that nobody noticed.

Two tools were looked at first. mutmut 3.8 leaves out what stands outside functions and most of what has a decorator
(properties, patched methods, tables, defaults of fields), which is where many numbers of locrl are. cosmic-ray 8.7
starts a new process for each fault (here 5 to 9 seconds of imports before the first test) and tries all faults instead
of a sample. Neither can put the same fault into the notebook's cell.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "benchmarks" / "mutate.json"
SAME = Path(__file__).with_name("mutate_same.json")  # faults that make no difference, each with the reason
MODULES = (
    "data.boxes",
    "data.voc",
    "data.formats",
    "envs.rewards",
    "envs.oracle",
    "envs.observation",
    "envs.localization",
    "agents.double_dqn",
    "agents.replay",
    "agents.policy",
    "agents.search",
    "agents.predictions",
    "agents.judge",
    "evaluation.average_precision",
    "evaluation.protocols",
    "evaluation.multi",
    "evaluation.statistics",
    "evaluation.judging",
    "vision.saliency",
    "vision.region_pooling",
)
ELSEWHERE = {  # tests of a module that stand in another wing
    "data.boxes": ["tests/envs/test_oracle.py", "tests/envs/test_rewards.py"],
    "agents.policy": ["tests/experiments/test_train.py"],
    "agents.predictions": ["tests/apps/test_locate.py"],
    "agents.judge": ["tests/experiments/test_judge_runs.py"],
    "evaluation.judging": ["tests/experiments/test_judge_runs.py"],
}
OWN = {"agents.predictions": ["tests/evaluation/test_confidence.py", "tests/evaluation/test_protocols.py"]}
EVERYWHERE = "tests/test_defaults.py"  # what is used where nothing is said, in any module
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Fault:
    "One small change of one module"

    module: str  # such as "data.boxes"
    line: int  # in the exported module, from 1
    before: str  # the expression as it is
    after: str  # as it becomes
    begin: int  # bytes from the start of the module
    end: int
    context: str  # the line, which says more than its number once the module changes

    @property
    def key(self) -> tuple:
        "What stays the same when other lines change"
        return self.module, self.before, self.after, self.context

    @property
    def name(self) -> str:
        "For tables: the place and what changes"
        return f"{self.module}:{self.line}: {self.before} -> {self.after}"


def _altered(node):
    "What may be put in place of `node`, as new nodes"
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
        yield ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(node.value * 1.5 if node.value else 1.0)


def _parts(node):
    "The children of `node` that say what is computed: not annotations, not what an error or a `repr` words"
    if isinstance(node, (ast.Raise, ast.JoinedStr)):
        return []
    if isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "_repr_html_", "_repr_png_"):
        return []
    if isinstance(node, ast.arg):
        return []
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value else []
    if isinstance(node, ast.FunctionDef):
        return [node.args, *node.body, *node.decorator_list]
    return ast.iter_child_nodes(node)


def faults_of(
    module: str,  # such as "data.boxes"
    root: Path = ROOT,  # of the tree
) -> list[Fault]:
    "Return every fault that can be made in a module, in the order of its lines"
    source = (root / "locrl" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    waiting = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        waiting += _parts(node)
        for new in _altered(node):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            before = source.encode()[begin:end].decode()
            if "\n" in before and not isinstance(node, ast.Constant):
                continue  # the notebook's cell is changed by the line
            text = ast.unparse(ast.fix_missing_locations(new))
            whole = isinstance(node, (ast.AugAssign, ast.Constant))
            context = source.splitlines()[node.lineno - 1].strip()
            found.append(Fault(module, node.lineno, before, text if whole else f"({text})", begin, end, context))
    return sorted(found, key=lambda f: (f.begin, f.end))


def chosen(
    module: str,  # such as "data.boxes"
    n: int,  # how many faults
    seed: int,  # of the choice: more faults go on where fewer stopped
) -> list[Fault]:
    "Return faults of a module at random"
    every = faults_of(module)
    order = random.Random(f"{seed} {module}").sample(every, len(every))
    return order[:n]


def same_anyway() -> dict:
    "Return the faults that make no difference: their keys, and why"
    rows = json.loads(SAME.read_text(encoding="utf-8")) if SAME.exists() else []
    reasons = {tuple(row["key"]): row["why"] for row in rows}
    return reasons


def not_tried() -> set:
    "Return the keys of those that are not run: of two faults that are worded alike one may make a difference"
    reasons = same_anyway()
    keys = Counter(fault.key for module in {key[0] for key in reasons} for fault in faults_of(module))
    return {key for key in reasons if keys[key] == 1}


def make(
    fault: Fault,
    tree: Path,  # a copy of the repository
) -> list[tuple[Path, bytes]]:
    "Put a fault into a tree; return the files as they were"
    path = tree / "locrl" / f"{fault.module.replace('.', '/')}.py"
    whole = path.read_bytes()
    path.write_bytes(whole[: fault.begin] + fault.after.encode() + whole[fault.end :])
    undo = [(path, whole)]
    text = whole[: fault.begin].decode()
    marker = re.findall(r"# %% (\S+\.ipynb) #(\w+)\n", text)[-1:]
    if not marker:
        return undo
    notebook = (path.parent / marker[0][0]).resolve()
    raw = notebook.read_bytes()
    book = json.loads(raw)
    (cell,) = [c for c in book["cells"] if c.get("id") == marker[0][1]]
    line = whole[whole.rfind(b"\n", 0, fault.begin) + 1 : whole.find(b"\n", fault.end)].decode()
    since = text[text.rfind(marker[0][1]) :].split("\n", 1)[1]
    earlier = since.count(f"\n{line}\n") + since.startswith(f"{line}\n")
    lines = "".join(cell["source"]).split("\n")
    places = [k for k, other in enumerate(lines) if other == line]
    if earlier < len(places):  # an import is worded otherwise in the notebook
        at = whole.rfind(b"\n", 0, fault.begin) + 1
        head = whole[at : fault.begin].decode()
        tail = whole[fault.end : whole.find(b"\n", fault.end)].decode()
        lines[places[earlier]] = head + fault.after + tail
        cell["source"] = "\n".join(lines)
        undo.append((notebook, raw))
        notebook.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return undo


def in_child(
    work,  # function without arguments; what it returns is true where all is well
    seconds: float,  # it may take
    log: Path,  # where its output goes
) -> str:
    "Run in a forked process, which shares the libraries' imports: 'passed', 'failed' or 'timeout'"
    child = os.fork()
    if not child:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "failed" if status else "passed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


class Quickest:
    "Of pytest: runs the quickest tests first, and notes how long each takes"

    def __init__(self, file: Path):
        self.file = file
        self.seconds = json.loads(file.read_text()) if file.exists() else {}

    def pytest_collection_modifyitems(self, items):
        "Sort the tests"
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report):
        "Note the time of a test"
        self.seconds[report.nodeid] = max(self.seconds.get(report.nodeid, 0.0), report.duration)

    def pytest_sessionfinish(self):
        "Write the times for the next process"
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.seconds))
        os.replace(part, self.file)


def run_tests(tree: Path, tests: list[str]):
    "Run some tests in the copy; true where all pass"
    import pytest

    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ["PYTHONPATH"] = str(tree)
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    plugins = [Quickest(tree / "durations.json")]
    return pytest.main([*options, "--tb=line", "--hypothesis-seed=0", *tests], plugins) in (0, 5)


def run_notebook(tree: Path, notebook: Path):
    "Run a notebook in the copy; true where no cell fails"
    from nbdev.test import test_nb

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    return test_nb(notebook, skip_flags=("slow", "gpu", "net"), basepath=tree)[0]


def notebook_of(module: str, tree: Path) -> Path:
    "Return the notebook that exports a module"
    path = tree / "locrl" / f"{module.replace('.', '/')}.py"
    return (path.parent / re.search(r"# %% (\S+\.ipynb) #", path.read_text(encoding="utf-8"))[1]).resolve()


def stages(module: str, tree: Path) -> dict:
    "What is run for a fault of `module`, in order: name -> function that is true where nothing is noticed"
    wing, name = module.split(".")
    every = sorted(f"tests/{wing}/{p.name}" for p in (tree / "tests" / wing).glob("test_*.py"))
    own = OWN.get(module) or [f for f in every if Path(f).stem == f"test_{name}"] or every
    others = [EVERYWHERE, *(f for f in every if f not in own), *ELSEWHERE.get(module, [])]
    return dict(
        own=lambda: run_tests(tree, own),
        wing=lambda: not others or run_tests(tree, others),
        notebook=lambda: run_notebook(tree, notebook_of(module, tree)),
    )


def share_imports():
    "Import the libraries once, before any fork"
    import gymnasium  # noqa: F401
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import scipy.stats  # noqa: F401
    import stable_baselines3  # noqa: F401
    import torch  # noqa: F401
    import torch._dynamo  # noqa: F401


def copy_tree(to: Path) -> Path:
    "Copy what the tests need"
    for name in (
        "locrl",
        "tests",
        "nbs",
        "results",
        "benchmarks",
        ".ci",
        "pyproject.toml",
        "settings.ini",
        "README.md",
    ):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


def judge(
    fault: Fault,
    tree: Path,  # a copy of the repository
    names,  # of the stages that are run
    passed,  # names of those that noticed nothing before
    seconds: float,  # a stage may take
) -> dict:
    "Make a fault, run what may notice it, mend it; what noticed is in `by`, None where nothing did"
    undo = make(fault, tree)
    begun = time.monotonic()
    by = None
    passed = list(passed)
    every = stages(fault.module, tree)
    try:
        for name in names:
            if name in passed:
                continue
            verdict = in_child(every[name], seconds, tree / "mutate.log")
            if verdict != "passed":
                by = name + (" (timeout)" if verdict == "timeout" else "")
                break
            passed.append(name)
    finally:
        for path, content in undo:
            path.write_bytes(content)
    return asdict(fault) | dict(by=by, passed=passed, seconds=round(time.monotonic() - begun, 1))


def summary(rows: list[dict]) -> str:
    "Word the share that was noticed, by module"
    lines = []
    for module in dict.fromkeys(r["module"] for r in rows):
        mine = [r for r in rows if r["module"] == module]
        seen = sum(r["by"] is not None for r in mine)
        lines.append(f"{module:30} {seen:4} of {len(mine)}")
    seen = sum(r["by"] is not None for r in rows)
    how = Counter("notebook" if "notebook" in r["by"] else "tests" for r in rows if r["by"])
    lines.append(f"{'all':30} {seen:4} of {len(rows)}: {100 * seen / max(len(rows), 1):.1f} %, by {dict(how)}")
    return "\n".join(lines)


def write(out: Path, rows: list[dict], each: int):
    "Write the results file"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda r: (MODULES.index(r["module"]) if r["module"] in MODULES else 99, r["begin"]))
    same = same_anyway()
    lost = [r for r in rows if not r["by"]]
    seen = len(rows) - len(lost)
    book = sum(bool(r["by"]) and r["by"].startswith("notebook") for r in rows)
    survivors = []
    for r in lost:
        row = {k: r[k] for k in ("module", "line", "before", "after", "context", "passed")}
        why = same.get((r["module"], r["before"], r["after"], r["context"]))
        survivors.append(row | (dict(no_difference=why) if why else {}))
    content = dict(
        command=f"python benchmarks/mutate.py --each {each}",
        n=len(rows),
        noticed=seen,
        by_tests=seen - book,
        by_notebooks=book,
        no_difference=sum("no_difference" in r for r in survivors),
        survivors=survivors,
        faults=rows,
    )
    part = out.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out)


def main():
    "Read the arguments, make the faults, write the table"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=16, help="faults a module")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="names such as data.boxes")
    parser.add_argument("--stages", nargs="+", default=["own", "wing", "notebook"], help="what runs")
    parser.add_argument("--again", action="store_true", help="try those again that nobody noticed")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many; a later call goes on")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a stage may take")
    parser.add_argument("--check", action="store_true", help="run each stage once without a fault first")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1", MPLBACKEND="agg", IN_TEST="1")
    sys.dont_write_bytecode = True
    rows = {}
    if args.out.exists():
        for r in json.loads(args.out.read_text(encoding="utf-8"))["faults"]:
            rows[r["module"], r["before"], r["after"], r["context"]] = r
    share_imports()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="locrl-mutate-") as folder:
        tree = copy_tree(Path(folder))
        picks = [chosen(module, args.each, args.seed) for module in args.modules]
        wanted = {f.key for pick in picks for f in pick}
        rows = {k: r for k, r in rows.items() if k in wanted or r["module"] not in args.modules}
        if args.check:
            demand_sound(args, tree)
        same = not_tried()
        for fault in (pick[k] for k in range(args.each) for pick in picks if k < len(pick)):
            known = rows.get(fault.key)
            if fault.key in same:
                rows[fault.key] = asdict(fault) | dict(by=None, passed=[], seconds=0.0)
                continue
            passed = known["passed"] if known and not args.again else []
            if known and (known["by"] or not set(args.stages) - set(passed)):
                rows[fault.key] = known | asdict(fault)
                continue
            if time.monotonic() - begun > 60 * args.minutes:
                break
            row = rows[fault.key] = judge(fault, tree, args.stages, passed, args.timeout)
            print(f"{row['seconds']:6.1f} s  {row['by'] or 'NOBODY'}  {fault.name}", flush=True)
            write(args.out, list(rows.values()), args.each)
    write(args.out, list(rows.values()), args.each)
    print(summary(list(rows.values())))
    for r in rows.values():
        if r["by"] is None:
            print(f"{r['module']}:{r['line']}: {r['before']} -> {r['after']}   in {r['context']}")


def demand_sound(args, tree):
    "Stop where a stage fails without any fault"
    for module in args.modules:
        for name in args.stages:
            if in_child(stages(module, tree)[name], args.timeout, tree / "mutate.log") != "passed":
                print((tree / "mutate.log").read_text()[-3000:])
                raise SystemExit(f"{module}, {name}: fails without a fault, mend that first")


if __name__ == "__main__":
    main()
