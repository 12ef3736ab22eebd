"""Cases of `evaluate`, `label` and `start`: whole processes with their descendants."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detr.checkpoints.references import absolute_reference
from pipelines.benchmarks.agreement import compare, read_found, save_found
from pipelines.benchmarks.benchmark import Bench, Case, read_names
from pipelines.benchmarks.config import two_sizes
from pipelines.benchmarks.library_cases import write_model
from pipelines.benchmarks.machine import installed
from pipelines.benchmarks.photographs import linked_folder, photograph_files
from pipelines.benchmarks.rounds import Trial, Variant

THRESHOLD = 0.05
IMPORTS = ("jobs.label", "pipelines.labelling.label", "detr.detector")
EQUAL = 1e-9  # of the twelve numbers


def evaluate_cases(bench: Bench) -> Iterator[Case]:
    """Yield the case of `evaluate`: two sizes of made-up results."""
    config = bench.config
    sizes = two_sizes(config.images)
    bench.setup("evaluate_subjects:write_files", {"sizes": sizes, "detections": config.detections}, name="results")
    variants = bench.with_before(Variant("ours", "evaluate_subjects:ours", {}))
    note = "once, by class; ours also evaluates without classes and draws curves"
    variants.append(
        Variant("pycocotools", "evaluate_subjects:pycocotools", {}, installed("pycocotools") or "", note=note)
    )
    numbers: dict[tuple[str, int], Mapping[str, float]] = {}
    bench.reference = "the twelve numbers of pycocotools"

    def keep(variant: Variant, trial: Trial) -> None:
        assert trial.returned is not None
        numbers[variant.name, trial.size] = trial.returned["numbers"]

    def agreement(variant: Variant, _: Sequence[Trial]) -> Mapping[str, Any] | None:
        pairs = [(numbers.get((variant.name, size)), numbers.get(("pycocotools", size))) for size in sizes]
        if any(mine is None or theirs is None for mine, theirs in pairs):
            return None
        largest = max(abs(mine[name] - theirs[name]) for mine, theirs in pairs if mine and theirs for name in theirs)
        return {"largest difference": largest, "AP": numbers[variant.name, sizes[-1]]["AP"]}

    yield Case(
        name=f"evaluate {sizes[0]:,} and {sizes[1]:,} images with {config.detections} detections each",
        variants=tuple(variants),
        agreement=agreement,
        sizes=sizes,
        of="total",
        after=keep,
    )


@dataclass(slots=True)
class _Tables:
    """The output locations of a labelling case's trials, and their detections for one list of files."""

    bench: Bench
    folders: Mapping[int, Path]
    files: Mapping[int, Sequence[Path]]
    names: dict[str, int]
    found: dict[str, Path] = field(default_factory=dict)

    def place(self, variant: Variant, number: int, size: int) -> Path:
        """Return an empty output location of a trial."""
        letters = "".join(letter if letter.isalnum() else "_" for letter in variant.name)
        place = self.bench.folder / f"table_{letters}_{number}_{size}"
        shutil.rmtree(place, ignore_errors=True)
        return place

    def keep(self, variant: Variant, place: Path, size: int) -> None:
        """Keep the detections of the largest size, and remove the table."""
        if size == max(self.files):
            path = self.bench.folder / f"labelled_{len(self.found)}.npz"
            by_name = read_lines(place) if place.is_file() else read_table(place)
            self._save(path, by_name, self.files[size])
            self.found[variant.name] = path
        if place.is_dir():
            shutil.rmtree(place)

    def _save(self, path: Path, by_name: Mapping[str, list[Any]], files: Sequence[Path]) -> None:
        from PIL import Image

        per_image, sizes = [], []
        for file in files:
            rows = by_name.get(file.name, [])
            classes = [self.names.setdefault(label, len(self.names)) for label, _, _ in rows]
            per_image.append((classes, [score for _, score, _ in rows], [box for _, _, box in rows]))
            with Image.open(file) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                sizes.append((image.width, image.height) if turned else (image.height, image.width))
        save_found(path, per_image, sizes)


def label_cases(bench: Bench) -> Iterator[Case]:
    """Yield two cases: whole labelling commands at two sizes, and the network alone on the same photographs."""
    config = bench.config
    model = _model(bench)
    sizes = two_sizes(config.images)
    photographs = {size: photograph_files(bench, size) for size in sizes}
    folders = {size: linked_folder(bench.folder / f"lake_{size}", photographs[size]) for size in sizes}
    files = {size: sorted(folders[size].iterdir()) for size in sizes}
    tables = _Tables(bench, folders, files, read_names(Path(model)))
    command = {"module": "jobs.label", "threads": config.threads}
    variants = bench.with_before(Variant("ours", "label_subjects:command", command, actors=config.most_actors))
    variants += list(_label_peers(bench, model))
    judge = next((name for name in ("transformers pipeline", "Ray Data script", "Daft script") if name in
                  [variant.name for variant in variants]), "ours")  # fmt: skip
    bench.reference = f"the detections of {judge}"
    places: dict[tuple[str, int, int], Path] = {}

    def prepare(variant: Variant, number: int, size: int) -> Mapping[str, Any]:
        place = tables.place(variant, number, size)
        places[variant.name, number, size] = place
        if variant.subject == "label_subjects:command":
            return {"arguments": [*label_arguments(bench, model, folders[size], place), *_as_peers_have(bench)]}
        return {"files": [str(file) for file in files[size]], "output": str(place)}

    def after(variant: Variant, trial: Trial) -> None:
        tables.keep(variant, places[variant.name, trial.round, trial.size], trial.size)

    yield Case(
        name=f"label {sizes[0]} and {sizes[1]} photographs from start to table, {config.device}",
        variants=tuple(variants),
        agreement=lambda variant, _: _labels_agree(tables.found.get(variant.name), tables.found.get(judge)),
        sizes=sizes,
        prepare=prepare,
        after=after,
    )
    alone = {
        "model": model,
        "files": [str(file) for file in files[sizes[-1]]],
        "device": config.device,
        "precision": config.precisions[0],
        "threads": config.threads,
        "seconds": config.seconds,
    }
    yield Case(
        name=f"the network alone on the same {sizes[-1]} photographs, {config.device}",
        variants=tuple(bench.with_before(Variant("ours, network alone", "label_subjects:network_alone", alone))),
        agreement=lambda _, trials: _share(bench, trials),
    )


def start_cases(bench: Bench) -> Iterator[Case]:
    """Yield the cases of `start`: imports, a run with nothing to do, and the first shard of a new table."""
    config = bench.config
    bench.reference = "rows of the table that the command leaves"
    files = photograph_files(bench, config.images[0])
    lake = linked_folder(bench.folder / "lake", files)
    for module in IMPORTS:
        yield Case(
            name=f"import {module}",
            variants=tuple(bench.with_before(Variant("ours", "label_subjects:imports", {"module": module}))),
            agreement=lambda *_: {"imported": "yes"},
            of="total",
        )
    ours = bench.with_before(Variant("ours", "label_subjects:command", {"module": "jobs.label"}))
    model = "scenes" if config.model == "random" else absolute_reference(config.model)
    done: dict[str, Path] = {}
    for number, variant in enumerate(ours):
        done[variant.name] = bench.folder / f"done_{number}"
        arguments = label_arguments(bench, model, lake, done[variant.name])
        bench.setup(variant.subject, {**variant.settings, "arguments": arguments}, code=variant.code)
    yield Case(
        name=f"nothing to do: {len(files)} photographs are labelled",
        variants=tuple(ours),
        agreement=lambda variant, _: {"rows": len(read_table(done[variant.name])), "of": len(files)},
        of="total",
        prepare=lambda variant, *_: {"arguments": label_arguments(bench, model, lake, done[variant.name])},
    )
    rows: dict[str, int] = {}
    places: dict[tuple[str, int], Path] = {}

    def prepare(variant: Variant, number: int, _: int) -> Mapping[str, Any]:
        places[variant.name, number] = bench.folder / f"fresh_{ours.index(variant)}_{number}"
        return {"arguments": label_arguments(bench, model, lake, places[variant.name, number])}

    def watch(variant: Variant, number: int, _: int) -> Callable[[float], Mapping[str, float]]:
        return first_shard_watch(places[variant.name, number])

    def after(variant: Variant, trial: Trial) -> None:
        rows[variant.name] = len(read_table(places[variant.name, trial.round]))

    yield Case(
        name=f"a new table of {len(files)} photographs",
        variants=tuple(ours),
        agreement=lambda variant, _: {"rows": rows.get(variant.name, 0), "of": len(files)},
        of="total",
        prepare=prepare,
        watch=watch,
        after=after,
    )


def label_arguments(bench: Bench, model: str, lake: Path, table: Path) -> list[str]:
    """Return the arguments of `jobs.label` for one trial."""
    config = bench.config
    line = ["--images", str(lake), "--table", str(table), "--model", model, "--threshold", str(THRESHOLD)]
    line += ["--device", config.device, "--precision", config.precisions[0]]
    return line + ([] if config.actors is None else ["--actors", config.actors])


def _as_peers_have(bench: Bench) -> list[str]:
    """Return the arguments that give `jobs.label` what each peer has: one detector with `--threads` threads."""
    config = bench.config
    line = ["--cpus-per-actor", str(config.threads)]
    return line + ([] if config.actors is not None else ["--actors", "1"])


def first_shard_watch(table: Path) -> Callable[[float], Mapping[str, float]]:
    """Return a watch that notes when the first labelled rows of a table were durable."""
    seen: dict[str, float] = {}

    def watch(elapsed: float) -> Mapping[str, float]:
        if not seen and any(any(table.glob(pattern)) for pattern in ("_runs/*/parts/*", "data/**/*.parquet")):
            seen["first shard"] = elapsed
        return seen

    return watch


def read_table(table: Path) -> dict[str, list[Any]]:
    """Return (label, score, box xyxy) of every detection in a table's published rows, by file name."""
    import pyarrow.parquet as pq

    found: dict[str, list[Any]] = {}
    for file in sorted(table.glob("data/**/*.parquet")):
        for row in pq.ParquetFile(file).read(columns=["uri", "detections"]).to_pylist():
            found[row["uri"].rsplit("/", 1)[-1]] = [
                (one["label"], one["score"], [one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")])
                for one in row["detections"] or []
            ]
    return found


def read_lines(file: Path) -> dict[str, list[Any]]:
    """Return the same from the JSON lines of a peer."""
    found: dict[str, list[Any]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found[row["file"].rsplit("/", 1)[-1]] = [
            (one["label"], one["score"], [one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")])
            for one in row["found"]
        ]
    return found


def _label_peers(bench: Bench, model: str) -> Iterator[Variant]:
    config = bench.config
    settings = {
        "model": model,
        "device": config.device,
        "precision": config.precisions[0],
        "threads": config.threads,
        "threshold": THRESHOLD,
        "batch": config.batches[0],
    }
    transformers = installed("transformers") or ""
    if bench.has("pipeline"):
        yield Variant("transformers pipeline", "peers.transformers_pipeline:label", settings, transformers)
    if bench.has("raydata"):
        yield Variant("Ray Data script", "peers.ray_data_script:label", settings, installed("ray") or "")
    if bench.has("daft"):
        yield Variant("Daft script", "peers.daft_script:label", settings, installed("daft") or "")


def _model(bench: Bench) -> str:
    write_model(bench)
    return str(bench.folder / "model")


def _labels_agree(file: Path | None, reference: Path | None) -> Mapping[str, Any] | None:
    if file is None or reference is None:
        return None
    values = asdict(compare(read_found(file), read_found(reference)))
    return {
        "matched": values["matched"],
        "back": values["matched_back"],
        "max px": values["max_px"],
        "AP": values["ap"],
        "boxes": values["boxes"],
    }


def _share(bench: Bench, trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    """Return the network's share of the whole command's cost per image."""
    whole = next((one for one in bench.records if one.variant == "ours"), None)
    each = (
        None if whole is None else (whole.wall_s_per_image if bench.config.primary == "wall" else whole.cpu_s_per_image)
    )
    steady = [trial.returned["steady"] for trial in trials if trial.returned]
    if each is None or each.median <= 0 or not steady:
        return None
    alone = sorted(one[f"{bench.config.primary}_s"] / one["images"] for one in steady)[len(steady) // 2]
    return {"share of the whole command's cost per image": alone / each.median}
