import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WORLD
from un2clip.__main__ import BOTH, main
from un2clip.methods.table import METHODS
from un2clip.stages import STAGES, run_stage

ROOT = Path(__file__).parents[2]
SHAPES = ("shapes", *(f"--{name}=x" for name in WORLD))


def said(capsys, *words: str) -> tuple[int, str]:
    status = main(list(words))
    return status, capsys.readouterr().err


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ingest", "--images=none", "--shards=x", "--params=none.yaml"], "cannot read none.yaml: No such file"),
        ([*SHAPES, "--seed=ten"], "--seed must be an integer, got 'ten'"),
        ([*SHAPES, "--seed=-1"], "seed must not be negative, got -1"),
        (["export", "--to=x", "--alias=champion", "--model=a/b"], "a/b"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, words: list[str], message: str) -> None:
    """No traceback for a user's mistake."""
    status, error = said(capsys, *words)
    assert status == 2 and message in error and error.count("\n") == 1


def test_a_rule_that_nothing_passes_costs_no_training(capsys, tmp_path) -> None:
    """`finetune` refuses it before it looks at its inputs, which are not there."""
    (tmp_path / "own.yaml").write_text("promote: {rules: [{benchmark: mmvp_vlm, gain_above: 100.0, data_sha256: ''}]}")
    names = [f"--{name}={tmp_path}" for name in ("checkpoints", "shards", "backbones", "latents", "encoder")]
    words = ["--method=un2clip", "--seed=1", "--device=cpu", f"--overlay={tmp_path / 'own.yaml'}"]
    status, message = said(capsys, "finetune", *words, *names)
    assert status == 2 and "mmvp_vlm has 135 items, and no outcome of them has a lower bound above 100" in message


def test_a_shell_completes_commands_and_flags(capsys, tmp_path) -> None:
    """A real bash with the script: a command, a command's flag, a stage's flag, and a file after it."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "photographs.tar").touch()
    for words, found in (("publ", "publish"), ("show --ty", "--types"), ("finetune --back", "--backbones"),
                         ("embed photo", "photographs.tar")):  # fmt: skip
        typed = f"COMP_WORDS=(un2clip {words}); COMP_CWORD={len(words.split())}; _shtab_un2clip"
        done = subprocess.run(
            ["bash", "-c", f'source ./script; {typed}; echo "${{COMPREPLY[@]}}"'],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [found], (words, done.stderr)


def test_no_traceback_reaches_the_shell(tmp_path) -> None:
    """The real process: an overlay with an unknown key ends with status 2 and one line on stderr."""
    (tmp_path / "o.yaml").write_text("ingest: {short_side: 3}\n")
    words = [sys.executable, "-m", "un2clip", "ingest", "--images=a", "--shards=b", f"--overlay={tmp_path / 'o.yaml'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("un2clip: unknown parameter ingest.short_side; known here: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_ends_it_quietly() -> None:
    """As `un2clip flags ... | head -1` does: nothing is printed, and the status is 128 + SIGPIPE."""
    words = [sys.executable, "-m", "un2clip", "flags", "configs/photos.yaml"]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    with subprocess.Popen(words, cwd=root, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_stages_without_tensors_do_not_wait_for_torch(tmp_path) -> None:
    """`shapes` and `ingest` in a new process: importing torch would take it longer than they do."""
    script = """
import sys
from un2clip.__main__ import main
to, numbers = sys.argv[1], ["--overlay=tests/e2e/tiny.yaml"]
made = [f"--images={to}/images", f"--benchmarks={to}/benchmarks", f"--instructions={to}/instructions"]
assert main(["shapes", *numbers, "--seed=1", *made]) == 0
assert main(["ingest", *numbers, made[0], f"--shards={to}/shards"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_stage(capsys) -> None:
    """`un2clip` alone shows the list."""
    with pytest.raises(SystemExit):
        main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_its_own_help(capsys, name: str) -> None:
    """`un2clip STAGE --help` lists its names; of `ask`, a command as well, with the flag that only the stage has."""
    with pytest.raises(SystemExit):
        main([name, *([f"{BOTH[name]}=pope"] if name in BOTH else []), "--help"])
    assert "--params" in capsys.readouterr().out


def test_run_stage_wants_exactly_the_stages_names() -> None:
    """A missing or foreign name is refused with the list of those there are."""
    with pytest.raises(ValueError, match="stage ingest takes images, shards; got images"):
        run_stage("ingest", {}, images="x")
    with pytest.raises(ValueError, match="unknown stage 'train'; known: shapes"):
        run_stage("train", {})


def test_method_table_says_what_each_row_is() -> None:
    """Every row has a sentence and trains something."""
    assert all(row.description and row.trains for row in METHODS.values())


def test_overlays_are_stacked(capsys, tmp_path) -> None:
    """`un2clip flags A B` is one list of words, and the later overlay wins."""
    (tmp_path / "own.yaml").write_text("finetune: {phases: {tune: {steps: 5}}}\n")
    assert main(["flags", "configs/paper.yaml", "configs/openai-vit-l-14.yaml", str(tmp_path / "own.yaml")]) == 0
    words = capsys.readouterr().out.split()
    assert "finetune.phases.tune.steps=5" in words and "finetune.phases.tune.lr.encoder=3e-07" in words
    assert "backbones.encoder.architecture=ViT-L-14-quickgelu:openai" in words
    assert not any(word.startswith("finetune.phases.tune.steps=9") for word in words)
