"""The command line: fast help, exit codes, one line per mistake."""

from __future__ import annotations

import resource
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from packaging.specifiers import SpecifierSet
from typer.testing import CliRunner, Result

from flows import doctor
from flows.cli import app
from flows.command_line.endings import again, reporting, resumable, typed
from flows.failures.resume import Outage, marking_resumable
from flows.orchestration.cancellation import CancelledInPrefectError
from magic141 import __version__
from magic141.errors import UserError
from magic141.tracking import Tracker
from tasks.provenance import git_commit

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")
PICTURE = str(ROOT / "docs" / "images" / "report.png")
HEAVY = ("torch", "mlflow", "prefect", "ray", "transformers", "diffusers", "numpy", "pydantic")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_help_imports_nothing_heavy() -> None:
    script = f"import sys, flows.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_fast() -> None:
    command = [sys.executable, "-c", "from flows.cli import app; app()", "--help"]
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert all(name in done.stdout for name in ("run", "plan", "eval", "generate", "doctor"))
    assert min(seconds) < 1.0  # of a processor: other work beside it does not count; 0.1 on a fast one


def test_the_version_has_its_commit() -> None:
    command = [sys.executable, "-c", "from flows.cli import app; app()", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"magic141 {__version__} ({git_commit()})\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "nowhere.yaml"), "config nowhere.yaml: no such file"),
        (("run", DEMO, "--set", "distill_dmd2.num_stepz=3"), "did you mean 'num_steps'?"),
        (
            ("run", DEMO, "--until", "evaluate", "--refresh", "report"),
            "--refresh report: would not run with --until evaluate; give one of the two",
        ),
        (
            ("run", "--run", "1f", "--from", "distill_dmd2", "--refresh", "prepare_data"),
            "--refresh prepare_data: would not run with --from distill_dmd2; give one of the two",
        ),
        (
            ("sweep", DEMO, "--set", "data.source=folder", "--vary", "data.path=/nowhere,/there"),
            "data.path = /nowhere: no such",
        ),
        (("run", DEMO, "--until", "destill_cfg"), "--until destill_cfg: no such stage; did you mean 'distill_cfg'?"),
        (("run", DEMO, "--refresh", "x"), "--refresh x: no such stage; known:"),
        (("plan", DEMO, "--until", ""), "--until '': no such stage; known:"),
        (("plan", DEMO, "--run", "abc"), f"config {DEMO} and --run abc: expected one of them"),
        (("plan",), "expected a config, such as configs/demo.yaml, or --run with the id of an earlier run"),
        (("plan", "--run", "abc", "--from", ""), "--from '': no such stage; known:"),
        (("run", DEMO, "--set", "data.source=folder", "--set", "data.path=/nowhere"), "data.path = /nowhere: no such"),
        (("plan", DEMO, "--set", "seed=-1"), "seed = -1: expected greater than or equal to 0"),
        (
            ("generate", "--model", "abc", "--image", "no.png", "--prompt", "p", "-o", "o.mp4"),
            "--image no.png: no such",
        ),
        (
            ("generate", "--model", "abc", "--image", str(ROOT), "--prompt", "p", "-o", "o.mp4"),
            f"--image {ROOT}: is a folder; give a PNG, JPEG or WebP image",
        ),
        (("generate", "--model", "abc", "--image", DEMO, "--prompt", " ", "-o", "o.mp4"), "--prompt is empty"),
        (("generate", "--model", "abc", "--image", DEMO, "--prompt", "p", "-o", "o.gif"), "ends in .mp4"),
        (("generate", "--model", "abc", "--image", PICTURE, "--prompt", "p", "-o", "o.mp4"), "there are no runs in"),
        (("generate", "--model", "abc", "--image", DEMO, "--prompt", "p", "-o", "o.mp4"), "not a readable image"),
        (("generate", "--model", "abc", "--image", DEMO, "--prompt", "p", "-o", f"{DEMO}/o.mp4"), "(Not a directory)"),
        (("compare", "a", "b", "-o", str(ROOT)), f"--output {ROOT}: is a folder"),
        (("run", DEMO, "--workspace", DEMO), f"workspace {DEMO}: cannot write into {DEMO} (Not a directory)"),
        (("run", "--run", "abc", "--workspace", DEMO), f"workspace {DEMO}: cannot write into"),
        (("plan", DEMO, "--workspace", DEMO), f"workspace {DEMO}: cannot write into"),
        (("sweep", DEMO, "--vary", "seed=1,2", "--workspace", DEMO), f"workspace {DEMO}: cannot write into"),
        (
            ("sweep", DEMO, "--member", "'seed=1"),
            "--member 'seed=1: expected FIELD=VALUE FIELD=VALUE …, each quote closed",
        ),
        *(
            ((*command, "--workspace", "s3://b/x"), "workspace s3://b/x: an address, expected a folder on this machine")
            for command in [("run", DEMO), ("plan", DEMO), ("eval", "--run", "abc"), ("gc",)]
        ),
        (("plan", DEMO, "--workspace", ""), "--workspace is empty, expected a folder"),
        *(
            (
                (*command, "--workspace", "w", "--set", "workspace=v"),
                "--set workspace: overruled by --workspace w; give only one",
            )
            for command in [("run", DEMO), ("sweep", DEMO, "--vary", "seed=1,2")]
        ),
        (("eval", "--run", "abc", "--workspace", DEMO), f"workspace {DEMO}: cannot write into"),
        (("sweep", DEMO, "--vary", "seed=1,2", "--until", "nope"), "--until nope: no such stage"),
        (("sweep", DEMO, "--vary", "seed=1,2", "--variant", "nope"), "--variant nope: member seed 1 has no such"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [("eval", "--run", "0" * 32), ("run", "--run", "0" * 32)])
def test_a_run_that_is_not_there_is_missed_before_anything_starts(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Otherwise a flow run would fail, and say so to the whole team."""
    Tracker(tmp_path, "magic141")
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(tmp_path)])
    assert result.exit_code == 2
    assert "error: run 00000000000000000000000000000000: " in result.output
    assert not (tmp_path / "prefect").exists()


def test_a_model_that_is_nothing_is_named_as_it_was_given(tmp_path: Path) -> None:
    Tracker(tmp_path, "magic141")
    given = ("--model", "out/model", "--image", PICTURE, "--prompt", "p", "-o", f"{tmp_path}/o.mp4")
    result = CliRunner().invoke(app, ["generate", *given, "--workspace", str(tmp_path)])
    assert result.exit_code == 2
    assert "--model out/model: no such folder, no models:/NAME@ALIAS, and run out/model: no such run" in result.output


def test_debug_shows_the_traceback() -> None:
    result = call("run", "nowhere.yaml", "--debug")
    assert result.exit_code == 1
    assert result.exception is not None
    assert "no such file" in str(result.exception)


def test_the_workspace_of_a_config_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGIC141_HOME")
    config = tmp_path / "config.yaml"
    config.write_text(f"workspace: {config}\n")
    result = call("run", str(config))
    assert (result.exit_code, f"workspace {config}: cannot write into" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        *(("--seconds", value, "expected 0.1 to 86400") for value in ("inf", "nan", "0", "-1", "100000")),
        *(("--seed", value, "expected a whole number from 0 to 4294967295") for value in ("-1", "9" * 20)),
    ],
)
def test_lengths_and_seeds_have_bounds(option: str, value: str, line: str) -> None:
    result = call("generate", "--model", "m", "--image", DEMO, "--prompt", "p", "-o", "o.mp4", option, value)
    assert (result.exit_code, f"{option} {value}: {line}" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("lost", "said"),
    [("typer.echo('line')", ""), ("server.send(b'?')", "failed: BrokenPipeError: [Errno 32] Broken pipe")],
)
def test_only_a_reader_that_has_gone_is_passed_over(lost: str, said: str) -> None:
    """`| head` ends a command without a word; a connection that a server has closed does not."""
    script = (
        "import contextlib, socket, typer; from flows.command_line.endings import reporting\n"
        "server, peer = socket.socketpair(); peer.close()\n"
        f"with contextlib.suppress(typer.Exit), reporting(False):\n    while True: {lost}"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        assert command.stdout
        assert command.stderr
        if not said:
            command.stdout.close()
        assert next(command.stderr, "").strip() == said


@pytest.mark.parametrize("begun", [True, False])
def test_only_a_run_that_had_begun_has_an_error_file(capsys: pytest.CaptureFixture[str], begun: bool) -> None:
    with pytest.raises(typer.Exit), reporting(debug=False), marking_resumable() if begun else nullcontext():
        raise RuntimeError("out of memory")
    said = capsys.readouterr().err
    assert ("error.txt of the stage's MLflow run" in said, "--debug shows" in said) == (begun, True)


@pytest.mark.parametrize(
    ("error", "way"),
    [
        (UserError("data.path = videos: no usable clip"), "correct this, then"),
        (Outage("MLFLOW_TRACKING_URI: the server does not answer any more"), "to resume"),
        (CancelledInPrefectError("the run was cancelled"), "to resume"),
        (RuntimeError("out of memory"), "to resume"),
        (KeyboardInterrupt(), "to resume"),
    ],
)
def test_after_a_mistake_the_same_command_goes_on_once_it_is_corrected(
    error: BaseException, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["magic141", "run", "demo.yaml"])
    monkeypatch.delenv("MAGIC141_HOME")
    with pytest.raises(type(error)), resumable(), marking_resumable():
        raise error
    assert capsys.readouterr().err == f"finished stages are kept; {way}: magic141 run demo.yaml\n"


def test_a_second_interruption_while_a_run_ends_hides_no_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["magic141", "run", "demo.yaml"])
    monkeypatch.delenv("MAGIC141_HOME")
    with pytest.raises(KeyboardInterrupt), resumable():  # noqa: PT012
        try:
            with marking_resumable():
                raise KeyboardInterrupt
        finally:
            raise KeyboardInterrupt
    assert capsys.readouterr().err == "finished stages are kept; to resume: magic141 run demo.yaml\n"


def test_the_command_that_goes_on_works_in_another_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "magic141"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "run", "my demo.yaml"])
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("MAGIC141_HOME", raising=False)
    assert again() == f"{program} run 'my demo.yaml'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert again() == "magic141 run 'my demo.yaml'"
    monkeypatch.setenv("MAGIC141_HOME", "/w")
    assert again() == "magic141 run 'my demo.yaml' --workspace /w"
    monkeypatch.setattr(sys, "argv", [str(program), "run", "x.yaml", "--workspace=/v"])
    assert again() == "magic141 run x.yaml --workspace=/v"


def test_tools_are_named_as_they_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "magic141"), "run"])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert typed("mlflow") == "mlflow", "not of this environment"
    (tmp_path / "mlflow").touch(mode=0o755)
    assert typed("mlflow") == str(tmp_path / "mlflow")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typed("mlflow") == "mlflow"


def test_an_image_that_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    picture = tmp_path / "picture.png"
    picture.write_text("not a picture")
    result = call(
        "generate", "--model", str(tmp_path / "model"), "--image", str(picture), "--prompt", "p", "-o", "o.mp4"
    )
    assert (result.exit_code, "not a readable image" in result.stderr) == (2, True)


def test_plan_of_an_empty_workspace_runs_all_and_creates_nothing(tmp_path: Path) -> None:
    result = call("plan", DEMO)
    assert result.exit_code == 0
    assert result.stdout.count("● run") == 12
    assert "never made here" in result.stdout
    assert not (tmp_path / "home").exists()


def test_doctor_names_a_workspace_that_cannot_be_written() -> None:
    result = call("doctor", "--workspace", DEMO)
    assert result.exit_code == 1
    assert f"{DEMO}: cannot write into {DEMO} (Not a directory)" in result.stdout


def test_doctor_reports_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_GIB", 0)
    result = call("doctor")
    assert all(name in result.stdout for name in ("torch", "prefect", "mlflow", "device", "workspace"))
    assert result.exit_code == 0


def test_doctor_marks_what_could_be_better_and_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_GIB", 0)
    monkeypatch.setattr(doctor, "installed_version", {**dict.fromkeys(doctor.PACKAGES, "1.0"), "vbench": None}.get)
    result = call("doctor")
    assert result.exit_code == 0
    assert "! vbench               not installed (optional)\n  → for VBench's own scores" in result.stdout
    assert "✓ torch                1.0" in result.stdout


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 11, 7), (3, 12, 1), (3, 13, 0), (3, 14, 0)])
def test_doctor_takes_the_pythons_that_the_package_can_be_installed_in(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=version))
    found = doctor._python()
    assert found.ok == (".".join(map(str, version)) in SpecifierSet(project["requires-python"]))
    assert ("3.12 or 3.13" in found.remedy) != found.ok


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval", ("this or --model", "this or --run")),
        ("generate", ("models:/NAME/VERSION",)),
        ("serve", ("models:/NAME/VERSION",)),
    ],
)
def test_help_says_which_models_a_command_takes(command: str, words: tuple[str, ...]) -> None:
    said = " ".join(call(command, "--help").stdout.split())
    assert all(word in said for word in words)
