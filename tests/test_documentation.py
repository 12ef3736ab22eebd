"""The documents name every command, option, column and error kind, and nothing that does not exist."""

import re
import runpy
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.cli import commands
from pipelines.table.schema import ERROR_KINDS, PERMANENT_KINDS, SCHEMA

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [  # for users: what they say of options has to be true today
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("models", "operations", "repeats", "review", "security", "table", "training", "tutorial")
    ),
    ROOT / "deploy" / "prometheus" / "alerts.yml",
]
# of Ray's commands, kubectl, uvx and pip
OPTIONS_OF_OTHERS = {"--runtime-env-json", "--generate", "--head", "--from-file", "--from", "--index-url"}
NAMES = {path: str(path.relative_to(ROOT)) for path in (*DOCUMENTS, *GUIDES)}
REFERENCE = (ROOT / "docs" / "cli.md").read_text()
TABLE = (ROOT / "docs" / "table.md").read_text()


def test_the_reference_of_the_commands_is_what_their_help_prints() -> None:
    written_by_script = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))["reference"]()

    assert written_by_script == REFERENCE, "run `make docs`"
    assert all(f"## {name.replace('_', '-')}\n" in written_by_script for name in commands())


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES.get)
def test_every_command_of_a_document_exists(document: Path) -> None:
    text = document.read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]*`", text, re.DOTALL))
    named = {name.replace("-", "_") for name in re.findall(r"(?:^|[`$] ?)ray-detr ([a-z][a-z-]+)", code, re.MULTILINE)}

    assert named | set(re.findall(r"python -m jobs\.([a-z_]+)", text)) <= {*commands(), "help"}


@pytest.mark.parametrize("document", GUIDES, ids=NAMES.get)
def test_every_option_of_a_guide_exists(document: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", document.read_text()))

    assert {option for option in named - OPTIONS_OF_OTHERS if not re.search(rf"{option}\b(?!-)", REFERENCE)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES.get)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(target)

    assert missing == []


def anchors(file: Path) -> set[str]:
    """Return the names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_pictures_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for name in ("demo.jpg", "report.jpg"):
        assert (ROOT / "docs" / "pictures" / name).stat().st_size < 300_000


@pytest.mark.parametrize("kind", sorted(ERROR_KINDS))
def test_every_error_kind_is_explained_and_its_sort_named(kind: str) -> None:
    assert f"| `{kind}` | {'permanent' if kind in PERMANENT_KINDS else 'transient'} | " in TABLE


@pytest.mark.parametrize("name", SCHEMA.names)
def test_every_column_is_explained_with_its_type(name: str) -> None:
    assert f"| `{name}` | {shown_type(SCHEMA.field(name).type)} | " in TABLE


def shown_type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return "dictionary\\<string\\>"
    if pa.types.is_list(kind):
        return "list\\<struct\\>"
    return {"float": "float32", "timestamp[us, tz=UTC]": "timestamp[us, UTC]"}.get(str(kind), str(kind))
