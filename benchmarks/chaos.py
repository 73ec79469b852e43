"""Kills at random moments while the pipeline runs; after each the run is resumed until it finishes.

    python benchmarks/chaos.py --kills 50 --workspace runs-chaos
    python benchmarks/chaos.py --kills 50 --workspace runs-chaos-servers --servers

SIGKILL goes to the flow's process, a Ray worker, the raylet, one of its agents (with which it goes, too), the Prefect
server and, with --servers, the MLflow server (servers are restarted, the embedded Prefect server is not). A run that
fails is resumed by the command that it printed; one that was killed outright by the same command again. Several kills
hit one pipeline; when it has finished, it is compared with an undisturbed run: the same scores and artifacts, no
finished stage computed again, nothing lost, no process, half-made artifact or run left behind. Restartable: the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from chaos_checks import Result, problems, read_result
from chaos_record import Kill, Record, summary
from chaos_run import STARTING, Attempt, living
from documents import store_results
from servers import Server, mlflow_server, prefect_server, running

from magic141.tracking import Tracker
from tasks.pipeline import STAGES

AHEAD = 3  # a kill waits for one of the next so many stages
START_SHARE, START_SECONDS = 0.12, 10.0  # of the kills, how many fall into the first seconds of a process
MAX_FAILURES_IN_A_ROW = 3
INTERRUPTED = 130
ORPHAN_SECONDS = 90.0  # Ray's agents look for their cluster's head for a minute
RESTART_SECONDS = (0.5, 8.0)


class Campaign:
    """All pipelines, one after the other.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.options = arguments
        self.folder: Path = arguments.workspace.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "progress.json"
        self.record = Record.load(self.file)

    def run(self) -> None:
        """Kills until enough are done."""
        reference = self.reference()
        while len(self.record.kills) < self.options.kills:
            name = f"pipeline-{len(self.record.finished):03d}"
            with _servers(self.options.servers, self.folder / name / "servers") as servers:
                self.record.finished[name] = Pipeline(self, name, reference, servers).run()
            self.record.save(self.file)
            print(f"{name}: {'; '.join(self.record.finished[name]) or 'as undisturbed'}", flush=True)

    def reference(self) -> Result:
        """The undisturbed run."""
        home = self.folder / "reference"
        tracker = Tracker(home, "reference")
        try:
            return read_result(tracker)
        except LookupError:
            print("the undisturbed run", flush=True)
        attempt = Attempt(self.command("reference"), home, {}, self.folder / "reference.log")
        if not attempt.wait(lambda: False, self.options.timeout) or attempt.process.returncode:
            attempt.end()
            raise SystemExit(f"the undisturbed run failed: see {attempt.log}")
        return read_result(tracker)

    def command(self, name: str) -> list[str]:
        """Arguments of `magic141`."""
        settings = [f"experiment={name}", *self.options.overrides]
        until = ["--until", self.options.until] if self.options.until else []
        return ["run", self.options.config, *(word for value in settings for word in ("--set", value)), *until]

    def done(self, kill: Kill) -> None:
        """Records a kill."""
        self.record.kills.append(kill)
        self.record.save(self.file)
        print(f"{kill.pipeline}  {kill.target:<10} in {kill.stage:<13} {kill.run_ended}", flush=True)


class Pipeline:
    """One pipeline run, killed several times, resumed until it finishes.

    Args:
        campaign: the campaign that it belongs to.
        name: of its experiment and folder.
        reference: the undisturbed run.
        servers: those that it uses, killed and restarted. Its store is its own: it must not reuse another's work.
    """

    def __init__(self, campaign: Campaign, name: str, reference: Result, servers: Sequence[Server]) -> None:
        self.campaign, self.name, self.reference = campaign, name, reference
        self.servers = {server.name: server for server in servers}
        self.home = campaign.folder / name
        self.home.mkdir(exist_ok=True)
        self.problems: list[str] = []
        self.attempts: list[Attempt] = []

    def run(self) -> list[str]:
        """Starts, kills, resumes; returns what is wrong in the end."""
        arguments, failures = self.campaign.command(self.name), 0
        while failures < MAX_FAILURES_IN_A_ROW:
            attempt = self._start(arguments)
            try:
                kills = self._torment(attempt)
            except BaseException:  # this script was stopped: its runs go with it
                attempt.end()
                raise
            if attempt.process.returncode == 0:
                break
            failures = 0 if kills else failures + 1
            if not kills:
                self.problems.append(f"{attempt.log.name}: failed without a kill: {_last_line(attempt)}")
            arguments = attempt.resume_arguments() or arguments
            self.campaign.record.attempts += 1
        return [*self.problems, *self._inspect()]

    def _start(self, arguments: Sequence[str]) -> Attempt:
        number = len(list(self.home.glob("attempt-*.log")))
        log = self.home / f"attempt-{number:02d}.log"
        found = {server.variable: server.url for server in self.servers.values()}
        self.attempts.append(Attempt(arguments, self.home, found, log))
        return self.attempts[-1]

    def _torment(self, attempt: Attempt) -> int:
        """Kills something of this attempt, as often as it survives and kills are wanted; returns how often."""
        kills = 0
        while attempt.alive() and (rng := self._next_draw()) is not None:
            begun = time.monotonic()
            self._wait_for_moment(attempt, rng)
            if not attempt.alive():
                break
            self._kill(attempt, rng, begun)
            kills += 1
        if not attempt.wait(lambda: False, self.campaign.options.timeout):
            self.problems.append(f"{attempt.log.name}: hung: {_last_line(attempt)}")
            attempt.end()
        if kills and attempt.unfinished() and attempt.resume_arguments() is None:
            self.problems.append(f"{attempt.log.name}: ended without saying how to resume: {_last_line(attempt)}")
        return kills

    def _next_draw(self) -> random.Random | None:
        """The random numbers of the next kill; none when there are enough of them."""
        record, options = self.campaign.record, self.campaign.options
        mine = self._num_kills()
        if mine >= options.kills_per_pipeline or len(record.kills) >= options.kills:
            return None
        return random.Random(f"{options.seed} {self.name} {mine}")

    def _num_kills(self) -> int:
        return sum(kill.pipeline == self.name for kill in self.campaign.record.kills)

    def _wait_for_moment(self, attempt: Attempt, rng: random.Random) -> None:
        """Until somewhere within one of the next stages, or within the first seconds of the process."""
        done = attempt.finished_stages()
        ahead = [s.name for s in STAGES if s.name in self.reference.artifacts and s.name not in done][:AHEAD]
        if rng.random() < START_SHARE or not ahead:
            attempt.wait(lambda: False, rng.uniform(0, START_SECONDS))
            return
        stage = rng.choice(ahead)
        attempt.wait(lambda: attempt.stage() == stage, self.campaign.options.timeout)
        attempt.wait(lambda: False, rng.uniform(0, self.reference.seconds[stage]))

    def _kill(self, attempt: Attempt, rng: random.Random, begun: float) -> None:
        """Whoever was hit least often so far."""
        targets = attempt.targets() | {name: [] for name in self.servers}
        hit = Counter(kill.target for kill in self.campaign.record.kills)
        fewest = min(hit[target] for target in targets)
        target = rng.choice(sorted(name for name in targets if hit[name] == fewest))
        stage = attempt.stage() or STARTING
        if target in self.servers:
            server = self.servers[target]
            server.kill()
            attempt.wait(lambda: False, rng.uniform(*RESTART_SECONDS))
            server.start()
        else:
            rng.choice(sorted(targets[target], key=lambda process: process.pid)).kill()
        attempt.wait(lambda: False, 1.0)
        ended = "run goes on" if attempt.alive() else "run ends"
        self.campaign.done(Kill(self.name, stage, target, round(time.monotonic() - begun, 1), ended))

    def _inspect(self) -> Iterator[str]:
        if not self._num_kills():
            yield "finished without a kill"
        tracker = Tracker(self.home, self.name)
        yield from problems(tracker, self.home, self.reference)
        family = set().union(*(attempt.family for attempt in self.attempts))
        deadline = time.monotonic() + ORPHAN_SECONDS
        while living(family) and time.monotonic() < deadline:
            time.sleep(1)
        for process in living(family):
            yield f"left behind: process {' '.join(process.cmdline())[:80]}"
            process.kill()


def _last_line(attempt: Attempt) -> str:
    lines = attempt.printed().strip().splitlines()
    return lines[-1][:200] if lines else "printed nothing"


@contextmanager
def _servers(wanted: bool, folder: Path) -> Iterator[list[Server]]:
    made = [mlflow_server(folder), prefect_server(folder)] if wanted else []
    with running(*made) as environment:
        os.environ.update(environment)  # for the checks, which ask the same store
        yield made


def main() -> None:
    """Kills, prints and stores; exits with 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/smoke.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--until", metavar="STAGE", help="last stage; without it the whole pipeline")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-per-pipeline", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and targets")
    parser.add_argument(
        "--timeout", type=float, default=1200, metavar="SECONDS", help="after which a run is taken as hung"
    )
    parser.add_argument("--servers", action="store_true", help="also MLflow and Prefect servers, killed and restarted")
    parser.add_argument("--workspace", type=Path, default=Path("runs-chaos"), help="kept")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))  # as Ctrl-C: what it started ends with it
    campaign = Campaign(arguments)
    campaign.run()
    text = summary(campaign.record)
    print("\n" + text)
    name = "chaos_servers" if arguments.servers else "chaos"
    store_results(name, text, config=arguments.config, **asdict(campaign.record))
    raise SystemExit(any(campaign.record.finished.values()))


if __name__ == "__main__":
    main()
