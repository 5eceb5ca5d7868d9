"""The script of three hospitals: what it leaves in their folders, and that it stops at a changed package."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from garda.handover import format, ledger
from garda.handover.format import KNOWLEDGE
from tests.support.sites import CONFIG, SITES

SCRIPT = Path(__file__).parents[2] / "docs" / "hospital" / "three_hospitals.sh"
TINY = [f"--set={key}={json.dumps(value)}" for key, value in yaml.safe_load(CONFIG).items()]
HOSPITALS = {"hospital_A": SITES[0], "hospital_B": SITES[1], "hospital_C": SITES[2]}

# Every command is a process of its own, with its own folder and surroundings, as in life. It is forked from one that
# has imported everything already: the script has eleven commands, and importing torch and MONAI takes seconds each.
SERVER = """
import json, os, socket, sys
import garda.runs.hop, garda.runs.predict, garda.runs.run, garda.runs.mlflow
from garda import cli
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
while True:
    client, _ = server.accept()
    message, files, *_ = socket.recv_fds(client, 1 << 20, 3)
    if os.fork() == 0:
        sys.argv, folder, surroundings = json.loads(message)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(surroundings)
        try:
            cli.main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # without taking down, object by object, all that was imported
    code = os.waitstatus_to_exitcode(os.wait()[1])
    client.send(bytes([code & 255]))
    for file in (*files, client.detach()):
        os.close(file)
"""
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = json.dumps([["garda", *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [words], [0, 1, 2])
sys.exit(server.recv(1)[0])
"""


@pytest.fixture(scope="module")
def garda() -> Iterator[Path]:
    """A command that does what garda does."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's address must be short
        address, command = Path(folder, "socket"), Path(folder, "garda")
        command.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        command.chmod(0o755)
        with subprocess.Popen(
            [sys.executable, "-c", SERVER, str(address)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield command
            server.kill()


@pytest.fixture(scope="module")
def phantom(pipeline: Path) -> Path:
    return pipeline.parent / "data"


def play(phantom: Path, work: Path, **surroundings: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", SCRIPT, phantom, work, *TINY]
    return subprocess.run(words, env={**os.environ, **surroundings}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def played(garda: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("three") / "work"
    done = play(phantom, work, PATH=f"{garda.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("IDENTICAL: ")
    return work


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_three_hospitals_make_what_one_machine_makes(played):
    last, whole = played / "hospital_C" / "package", format.find_stage(played / "one_machine" / "run", 2)
    for name in KNOWLEDGE:
        assert (last / name).read_bytes() == (whole / name).read_bytes(), name
    before = format.find_stage(played / "hospital_A" / "run", 0)
    assert (last / "generator.safetensors").read_bytes() != (before / "generator.safetensors").read_bytes()


def test_no_hospital_holds_a_scan_or_a_key_of_another(played, phantom):
    scans = {site: digests(phantom / site) for site in SITES}
    for hospital, site in HOSPITALS.items():
        here = digests(played / hospital)
        assert scans[site] <= here
        assert not here & set.union(*(scans[other] for other in SITES if other != site))
        assert [file.name for file in (played / hospital).rglob("*.key")] == [f"{hospital[-1]}.key", "pseudonyms.key"]
    keys = {file.read_bytes() for file in played.rglob("*.key")}
    assert len(keys) == 2 * len(HOSPITALS) + 1


def test_each_hospital_has_signed_its_own_line(played):
    package = played / "hospital_C" / "package"
    assert [json.loads(line)["domain"] for line in ledger.read_lines(package)] == [*SITES]
    signatures = [json.loads(line) for line in (package / "signatures.jsonl").read_text().splitlines()]
    assert [signature["line"] for signature in signatures] == [1, 2, 3]
    assert len({signature["key"] for signature in signatures}) == 3
    assert len([*(played / "hospital_C" / "labelmaps").iterdir()]) == 1


@pytest.mark.parametrize("package", ["a.zip", "b.zip"])
def test_a_package_that_is_changed_on_the_way_stops_it(package, played, garda, phantom, tmp_path):
    courier = tmp_path / "cp"  # carries everything as it is, but for one bit of the package
    courier.write_text(
        f"""#!{sys.executable} -IS
import os, subprocess, sys
from pathlib import Path
words = sys.argv[1:]
subprocess.run(["cp", *words], env={{**os.environ, "PATH": {os.environ["PATH"]!r}}}, check=True)
if words[0].endswith("/{package}"):
    carried = Path(words[-1], "{package}")
    contents = bytearray(carried.read_bytes())
    contents[len(contents) // 2] ^= 1
    carried.write_bytes(contents)
"""
    )
    courier.chmod(0o755)
    done = play(phantom, played, GARDA=str(garda), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(package) and "IDENTICAL" not in done.stdout
