"""Jobs of several ranks, one after another, in one set of processes: `torchrun rank_jobs.py CASES.json RESULTS.json`.

A case is {"name", "words", and what else `run_case` knows}. Rank 0 goes through them, the others follow. One set of
processes for many jobs: each would import for seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MINE = '''"""What the jobs of the tests bring along."""

from pathlib import Path
from lightning.pytorch import Callback


class Stop(Callback):
    """Fails on all ranks after an optimizer step, while there is a file of that name."""

    def __init__(self, step: int, rank: int | None = None) -> None:
        self.step, self.rank = step, rank

    def on_train_start(self, trainer, *_):
        self.wanted = Path("stop").exists() and self.rank in (None, trainer.global_rank)

    def on_train_batch_end(self, trainer, *_):
        if self.wanted and trainer.global_step == self.step:
            raise ValueError("stopped by the test")
'''


def make_home(folder: Path) -> Path:
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text(MINE)
    (folder / "pyproject.toml").write_text('[tool.frugal]\npackages = ["mine"]\n')
    return folder


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Run the job of a case, stopped at a step where it says so; where it names another's folder, going on from a copy
    of that one."""
    import frugal

    words = list(case["words"])
    stop = Path("stop")
    if "stop_at" in case:
        stop.touch()
        rank = f",rank:{case['stop_rank']}" if "stop_rank" in case else ""
        words.append(f"+callbacks.stop={{_target_:mine.Stop,step:{case['stop_at']}{rank}}}")
    if "goes_on_from" in case:
        source = Path(case["goes_on_from"])
        source = source if source.is_absolute() else Path("logs") / source
        (run,) = source.glob("*")
        copy = Path("logs") / case["name"] / run.name
        shutil.copytree(run, copy)
        words = [f"run.resume={copy.resolve()}", *words]
    words += [f"run.experiment={case['name']}"]
    error = None
    try:
        frugal.run(words)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    stop.unlink(missing_ok=True)
    found = sorted(Path("logs", case["name"]).glob("*"))
    return {"error": error, "folders": [str(folder.resolve()) for folder in found]}


def torchrun(ranks: int, home: Path, *arguments: str) -> str:
    """Run this file on so many processes; what they said."""
    import frugal

    source = str(Path(frugal.__file__).parents[1])
    env = {**os.environ, "FRUGAL_LOG_DIR": str(home / "logs"), "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    words = [*launcher, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def main() -> int:
    from frugal import ranks

    if ranks.place().rank:
        return ranks.follow()
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    try:
        for case in cases:
            results[case["name"]] = run_case(case)
            Path(sys.argv[2]).write_text(json.dumps(results))
    finally:
        ranks.dismiss()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
