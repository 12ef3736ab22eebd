"""Ask for known vulnerabilities of the locked packages; exit code 1 when there are some.

Run by `make audit`. Where nobody answers, or does not know the packages, that is said and is no failure: pip-audit
itself ends well when not one package could be looked up.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements-dev.lock",)  # those of requirements.lock are among them
ANSWER_SECONDS = 120


def main() -> None:
    """Query, print, exit."""
    files = [word for lock in LOCKS for word in ("--requirement", str(ROOT / lock))]
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    command = [sys.executable, "-m", "pip_audit", *files, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)  # noqa: S603
        sentences, is_good = verdict(json.loads(done.stdout)["dependencies"])
    except subprocess.TimeoutExpired:
        sentences, is_good = [f"NOT audited: no answer within {ANSWER_SECONDS} s."], True
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no report"])[-1]
        sentences, is_good = [f"NOT audited: the vulnerability service cannot be asked ({reason[:200]})."], True
    print("\n".join(sentences))
    sys.exit(0 if is_good else 1)


def verdict(packages: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """Return the message for pip-audit's report, and whether no vulnerability is known."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {', '.join([one['id'], *one['aliases']])}; "
        f"mended in {', '.join(one['fix_versions']) or 'no version yet'}"
        for package in packages
        for one in package.get("vulns", ())
    ]
    count = len(packages) - len(skipped)
    sentences = [*found, f"audited: {count:,} of {len(packages):,} packages, {len(found):,} known vulnerabilities"]
    if skipped:
        names = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        sentences.append(f"NOT audited: {len(skipped):,} packages that the service does not know ({names}).")
    return sentences, not found


if __name__ == "__main__":
    main()
