"""The photographs of a benchmark: the files of a folder, or drawn scenes."""

from pathlib import Path

from pipelines.benchmarks.benchmark import Bench, SubjectFailed

SUFFIXES = {".jpg", ".jpeg", ".png"}


def photograph_files(bench: Bench, count: int) -> list[Path]:
    """Return `count` files of the given folder, by name, repeated if it has fewer; without a folder, drawn scenes.

    Raises:
        SubjectFailed: the folder has no photographs.
    """
    folder = bench.config.folder
    if folder is None:
        folder = bench.folder / f"scenes_{count}"
        bench.setup("scene_subjects:write", {"folder": str(folder), "count": count}, name="scenes")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SubjectFailed(f"{folder} has no photographs ({', '.join(sorted(SUFFIXES))})")
    return [files[index % len(files)].resolve() for index in range(count)]


def linked_folder(folder: Path, files: list[Path]) -> Path:
    """Make a folder of hard copies of `files` by numbered names; return it. Repeated files become different ones."""
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:06}_{file.name}").write_bytes(file.read_bytes())
    return folder
