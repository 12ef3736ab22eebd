"""The fault tests' own instruments: what they are to find, they find."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.checks import begun, check_history, watched
from tests.faults.conftest import ROOT

pytestmark = pytest.mark.slow


def write(path: Path, *uris: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {"uri": list(uris), "etag": ["e"] * len(uris), "model": ["m"] * len(uris)}
    whole = path.with_suffix(".new")
    pq.write_table(pa.table(keys), whole)
    whole.rename(path)


def test_a_table_that_only_grows_has_a_good_history(tmp_path: Path) -> None:
    with watched(tmp_path, tmp_path / "history") as seen:
        write(tmp_path / "data" / "run" / "0.parquet", "a", "b")
    check_history(seen)
    assert seen[-1]["rows"] == 2


def test_a_key_in_two_files_is_found(tmp_path: Path) -> None:
    with watched(tmp_path, tmp_path / "history") as seen:
        write(tmp_path / "data" / "run" / "0.parquet", "a", "b")
        write(tmp_path / "data" / "other" / "0.parquet", "b")
    with pytest.raises(AssertionError, match="'b'"):
        check_history(seen)


@pytest.mark.parametrize("after", [{}, {"run/0.parquet": "other bytes"}])
def test_a_file_that_goes_or_changes_is_found(after: dict[str, str]) -> None:
    seen = [{"files": {"run/0.parquet": "bytes"}, "twice": []}, {"files": after, "twice": []}]
    with pytest.raises(AssertionError, match="gone or changed"):
        check_history(seen)


def test_a_file_that_is_visible_before_it_is_whole_is_found(tmp_path: Path) -> None:
    torn = tmp_path / "data" / "0.parquet"
    write(torn, "a")
    torn.write_bytes(torn.read_bytes()[:-9])
    with pytest.raises(AssertionError, match="Parquet magic bytes"), watched(tmp_path, tmp_path / "history"):
        pass


def test_each_beginning_of_a_shard_is_counted_also_one_that_fails(tmp_path: Path) -> None:
    script = """
from pipelines.labelling.labeler import Labeler
labeler = Labeler.__new__(Labeler)
labeler._run_id = "night"
for shard in (7, 7):
    try:
        labeler.label(shard)
    except AttributeError:
        pass
"""
    work = tmp_path / "work"
    counting = str(Path(__file__).with_name("counting"))
    environment = {**os.environ, "PYTHONPATH": f"{counting}:{ROOT}", "FAULTS_WORK": str(work)}
    child = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert child.wait(60) == 0
    assert begun(work) == [("night", 7, child.pid, os.uname().nodename)] * 2
