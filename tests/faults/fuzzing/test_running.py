"""The harness itself: what ends badly is seen, kept and told, and costs no other case."""

from pathlib import Path

import pytest

from tests.faults.fuzzing import running
from tests.faults.fuzzing.running import fuzz


@pytest.mark.slow
@pytest.mark.faults
def test_a_case_that_crashes_hangs_grows_or_raises_is_a_finding_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SILENT_SECONDS", 5.0)
    monkeypatch.setattr(running, "KEPT", tmp_path)
    monkeypatch.setenv("FUZZ_CPU_SECONDS", "1")

    found = fuzz("trap", seed=7, cases=13, processes=1)

    assert found.outcomes == {"good": 8}
    evidence = {finding.number: finding.evidence for finding in found.findings}
    assert sorted(evidence) == [3, 5, 6, 8, 11]
    assert "SIGSEGV" in evidence[3]
    assert "SIGPROF" in evidence[5]
    assert "SIGKILL" in evidence[6]
    assert "MemoryError" in evidence[8]
    assert "LookupError: a bug" in evidence[11]
    assert found.findings[0].file.read_bytes() == b"case 3 of seed 7"
    assert "python -m tests.faults.fuzzing.child trap 7 3 4" in str(found.findings[0])
