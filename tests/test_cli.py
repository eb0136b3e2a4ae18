"""The command line as a user meets it: a process with arguments, two streams and a status."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

import reclaimactors

COMMAND = [sys.executable, "-m", "reclaimactors"]
PHONE = str(Path(__file__).parents[1] / "examples/topologies/phone.toml")
# Short, and over a small budget, so that there is pressure at once.
SHORT = ["--budget", "4MiB", "--seconds", "0.5"]


def run(*args: object, command=COMMAND, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*command, *map(str, args)],
        check=False, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=50,
    )  # fmt: skip


def assert_one_line(ended: subprocess.CompletedProcess[str], status: int, *says: str) -> None:
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("reclaimactors: ")
    for part in says:
        assert part in ended.stderr


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A file of input, so that these tests do not depend on this Python's library."""
    path = tmp_path_factory.mktemp("input") / "values"
    path.write_bytes(b"".join(b"%08d" % nr * 256 + os.urandom(2048) for nr in range(500)))
    return path


def test_help_tells_the_story_and_gives_examples():
    ended = run("--help")
    assert ended.returncode == 0
    for word in ("kswapd", "kcompressd", "padata", "Examples", "compare", "run", "check"):
        assert word in ended.stdout
    assert run().stdout == ended.stdout


@pytest.mark.parametrize("command", ["run", "compare", "simulate", "check", "plugins"])
def test_each_command_has_help(command):
    ended = run(command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage" in ended.stdout


def test_version():
    assert run("--version").stdout == f"reclaimactors {reclaimactors.__version__}\n"


def test_plugins_lists_the_built_in_names():
    ended = run("plugins")
    assert ended.returncode == 0
    for name in ("lz4", "zlib", "null", "memory", "file", "zram", "active_inactive", "mglru"):
        assert name in ended.stdout


def test_check_explains_a_topology():
    ended = run("check", "kcompressd")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "kcompressd" in ended.stdout
    assert "not used" not in ended.stdout
    assert ended.stdout.endswith("it opens here\n")


def test_check_says_what_means_nothing_in_a_mode(tmp_path):
    path = tmp_path / "topology.toml"
    path.write_text("compress = { mode = 'inline', fifo = 12, on_full = 'wait' }")
    assert "not used with mode 'inline': fifo, on_full\n" in run("check", str(path)).stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run"], "topology"),
        (["frobnicate"], "frobnicate"),
        (["run", "kcompressd", "--frob"], "--frob"),
        (["run", "kcompressd", "--seconds", "soon"], "--seconds"),
        (["run", "kcompressd", "--seconds", "nan"], "--seconds nan"),
        (["run", "kcompressd", "--seconds", "-1"], "--seconds -1"),
        (["run", "kcompressd", "--workload", "sleeper"], "known: launch, steady, ramp, eater"),
        (["run", "kcompressd", "--budget", "12XB"], "12XB"),
        (["run", "kcompressd", "--budget", "1"], "budget"),
        (["run", "kcompressd", "--budget", "1PiB"], "this machine has"),
        (["run", "kcompresd"], "kcompressd"),
        (["compare", "kcompressd", "absent.toml"], "absent.toml"),
        (["check", "absent.toml"], "absent.toml"),
        (["run", "kcompressd", "--input", "/absent"], "/absent"),
        (["run", "kcompressd", "--rounds", "0"], "--rounds"),
        (["run", "kcompressd", "--rounds", "900"], "--rounds 900 in --seconds 10: a round"),
        (["compare", PHONE, "kcompressd"], "budgets differ, so the topologies are not comparable"),
    ],
)
def test_what_a_user_may_mistype_is_one_line_and_status_2(args, says):
    ended = run(*args)
    assert_one_line(ended, 2, says)
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bugdet = 3", "topology.toml: bugdet is not a key (did you mean 'budget'?)"),
        ('policy = "lur"', "no policy plugin 'lur'"),
        ("compress = { compressor = { name = 'zlib', levle = 6 } }", "levle"),
        ("[[swap]]\nbackend = 'fil'", "(did you mean 'file'?)"),
        (
            "[[swap]]\nbackend = { name = 'file', path = '/absent' }",
            "reclaimactors: swap 'file0' cannot be opened: cannot make a swap file in path",
        ),
    ],
)
def test_check_says_what_run_would(tmp_path, text, says):
    path = tmp_path / "topology.toml"
    path.write_text(text)
    ended = run("check", str(path))
    assert ended.returncode == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1


BROKEN_POLICY = """
from reclaimactors.policies.active_inactive import ActiveInactive

class Broken(ActiveInactive):
    def isolate(self, nr):
        raise RuntimeError("a bug in it")
"""


def test_a_plugin_that_raises_what_it_may_not_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_policy.py").write_text(BROKEN_POLICY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "topology.toml"
    path.write_text('policy = "broken_policy:Broken"')
    assert_one_line(run("run", path, *SHORT), 1, "a bug in it")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("budgett = '8MiB'", "budget"),
        ("budget = '12XB'", "12XB"),
        ("watermarks = { min = '9%', low = '6%', high = '12%' }", "watermarks"),
        ("[compress]\ncompressor = 'zstandart'", "zstandart"),
        ("[[swap]]\nbackend = { name = 'file', path = '/absent/swap' }", "/absent"),
        ("[[swap]]\nbackend = { name = 'file', path = '/proc' }", "/proc"),
        (b"\xff\x00\x80random", "TOML"),
    ],
)
def test_a_bad_topology_is_one_line_and_status_2(toml, says, tmp_path):
    path = tmp_path / "my.toml"
    path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    assert_one_line(run("run", path, "--seconds", "0.5"), 2, says)


def test_an_input_without_bytes_is_one_line_and_status_2(tmp_path):
    assert_one_line(run("run", "kcompressd", "--input", tmp_path), 2, str(tmp_path))


def test_run_prints_a_table_of_100_columns(values):
    ended = run("run", "kcompressd", "--input", values, *SHORT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 100
    for word in ("pgsteal_anon", "allocstall", "refaults", "kcompressd", "values verified"):
        assert word in " ".join(ended.stdout.split())
    assert "reclaimactors compare --help" in ended.stdout


def test_a_narrow_ascii_terminal_gets_a_narrow_ascii_table(values):
    command = ["env", "COLUMNS=60", "PYTHONIOENCODING=ascii", *COMMAND]
    ended = run("run", "kcompressd", "--input", values, *SHORT, command=command)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= 60
    assert "?" not in ended.stdout


def test_json_is_one_object_that_describes_machine_and_results(values):
    ended = run(
        "compare", "kcompressd", "padata", "--input", values, "--json", "--workload", "phases",
        "--budget", "4MiB", "--seconds", "0.6", "--rounds", "2", "--seed", "7",
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    printed = json.loads(ended.stdout)
    assert set(printed) == {
        "machine", "workload", "seed", "seconds", "budget", "budgets", "limit_per_s", "input",
        "verdict", "results",
    }  # fmt: skip
    assert (printed["seed"], printed["budget"]) == (7, 4 << 20)
    assert [result["topology"] for result in printed["results"]] == ["kcompressd", "padata"]
    for result in printed["results"]:
        assert len(result["rounds"]) == 2
        assert result["workload"] == "phases"
        assert result["input_pages"] == 500
        assert result["vmstat"]["pgsteal_anon"] > 0
        assert result["compression_ratio"] > 1


def test_a_topology_is_compared_with_itself_under_two_names(values):
    ended = run("compare", "padata", "padata", "--input", values, "--json", *SHORT)
    names = [result["topology"] for result in json.loads(ended.stdout)["results"]]
    assert names == ["padata", "padata #2"]


def test_ctrl_c_in_the_middle_prints_what_was_measured(values):
    with Started("compare", "--input", values, "--budget", "4MiB", "--seconds", "20") as started:
        started.wait_for("kcompressd, round")
        started.process.send_signal(signal.SIGINT)
        stdout, stderr = started.rest()
    assert started.process.returncode == 130
    assert "kswapd_only" in stdout
    assert "pgsteal_anon" in stdout
    assert "interrupted" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_before_a_round_has_ended_says_so(values):
    for more in ([], ["--json"]):
        with Started("run", "padata", "--input", values, *more, "--seconds", "20") as started:
            started.wait_for("padata, round")
            started.process.send_signal(signal.SIGINT)
            stdout, _ = started.rest()
        if more:
            assert json.loads(stdout)["interrupted"] is True
            assert json.loads(stdout)["unfinished"] == ["padata"]
        else:
            said = " ".join(stdout.split())
            assert "ended before the values were verified" in said
            assert "values verified" not in said


def test_results_have_the_name_of_the_topology_and_not_of_its_file(values, tmp_path):
    path = tmp_path / "file.toml"
    path.write_text('name = "mine"\n[[swap]]\nbackend = "file"')
    names = (path, "kswapd_only_inline", path)
    ended = run("compare", *names, "--input", values, "--workload", "eater", "--json", *SHORT)
    names = [result["topology"] for result in json.loads(ended.stdout)["results"]]
    assert names == ["mine", "kswapd_only_inline", "mine #2"]


def test_a_reader_that_goes_away_is_no_traceback(values):
    command = [*COMMAND, "run", "kcompressd", "--input", str(values), *SHORT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        stderr = process.stderr.read().decode()
        assert process.wait(50) == 1
    assert stderr.count("\n") == 1
    assert os.strerror(errno.EPIPE) in stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_full_disk_under_stdout_is_no_traceback():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert_one_line(run("plugins", stdout=full), 1, os.strerror(errno.ENOSPC))


CORRUPT = """
import sys
from reclaimactors import Memory
get = Memory.get

async def lie(self, key):
    value = await get(self, key)
    return value[:-1] + b"?"

Memory.get = lie
sys.argv[0] = "reclaimactors"
from reclaimactors.cli import main
main()
"""


def test_a_value_that_differs_is_one_line_and_status_1(values):
    lying = [sys.executable, "-c", CORRUPT]
    ended = run(
        "compare", "kcompressd", "padata", "--input", values, "--workload", "eater", *SHORT,
        command=lying,
    )  # fmt: skip
    assert_one_line(ended, 1, "kcompressd", "key ")


class Started:
    """A command under way whose stderr is a terminal, so that its progress can be followed."""

    def __init__(self, *args: object) -> None:
        self.terminal, self.end = pty.openpty()
        fcntl.fcntl(self.terminal, fcntl.F_SETFL, os.O_NONBLOCK)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=self.end, text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        )  # fmt: skip
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.end)

    def _read(self) -> None:
        while select.select([self.terminal], [], [], 0)[0]:
            self.seen += os.read(self.terminal, 4096).decode()

    def wait_for(self, text: str) -> None:
        """Return once stderr has shown a text."""
        while text not in self.seen:
            assert self.process.poll() is None, self.seen
            select.select([self.terminal], [], [], 1)
            self._read()

    def rest(self) -> tuple[str, str]:
        """Return what the command writes to its end."""
        stdout, _ = self.process.communicate(timeout=50)
        self._read()
        return stdout, self.seen


def test_simulate_refuses_a_machine_file_without_a_cost(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('actors = "threads"\n[[cpu]]\ncapacity = 1\n')
    ended = run("simulate", "kcompressd", "--machine", path)
    assert_one_line(ended, 2, "mine.toml", "cpu[0].watts is missing; give { value = NUMBER, source")
