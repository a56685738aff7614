"""Preprocessing of all cases of a dataset into the folder that training reads."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medmamba.datasets import DatasetSpec, load_case
from medmamba.errors import InputError
from medmamba.images import ReadOptions
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.case import PreprocessedCase, preprocess_case
from medmamba.preprocessing.labels import encode, ignore_index, label_names
from medmamba.preprocessing.store import fill_case


def preprocess_dataset(
    spec: DatasetSpec,
    case_ids: Sequence[str],
    plan: Plan,
    configurations: Sequence[str],
    folder: Path,
    *,
    workers: int = 1,
    visit: Callable[[PreprocessedCase], None] = lambda case: None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    options: ReadOptions | None = None,
    hashes: Mapping[str, tuple[str, str | None]] | None = None,
) -> None:
    """Store the cases as ``folder/<configuration>/<case_id>`` for each named configuration of the plan.

    ``folder`` is one that nobody reads yet and that gets its name when all is there.

    Args:
        workers: cases in memory at the same time; what is written does not depend on it.
        visit: called with each case on the grid of the first configuration while it is in memory, in any order.
        on_case: progress, called with (cases done, cases in all).
        options: what is accepted when a case is read.
        hashes: content hashes of image and label map when each case was measured; InputError for others.
    """

    def one(case_id: str) -> None:
        case = spec.case(case_id)
        image, labels = load_case(spec, case, options)
        assert labels is not None
        if hashes is not None:
            found = (image.content_hash(), labels.content_hash())
            for path, now, measured in zip((case.images[0], case.label), found, hashes[case_id], strict=True):
                if now != measured:
                    raise InputError(f"{path}: changed while its dataset was planned. Run the command again.")
        indices = encode(labels.array, plan)
        made: dict[tuple[float, ...] | None, PreprocessedCase] = {}
        for name in configurations:
            configuration = plan.configurations[name]
            grid = None if configuration.spacing_mm is None else tuple(configuration.spacing_mm)
            if grid not in made:  # a cascade stands on the grid of the full resolution
                made[grid] = preprocess_case(case_id, image.array, image.grid, plan, configuration, indices)
            if name == configurations[0]:
                visit(made[grid])
            _store(folder / name / case_id, made[grid], plan, configuration, case.annotated)

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(one, case_ids), start=1):
            on_case(done, len(case_ids))


def _store(
    folder: Path, case: PreprocessedCase, plan: Plan, configuration: Configuration, annotated: Sequence[str] | None
) -> None:
    assert case.labels is not None
    names = ["background", *label_names(plan)]
    patch = tuple(configuration.patch_size)
    folder.mkdir(parents=True)
    fill_case(
        folder,
        case.case_id,
        case.image,
        case.labels,
        chunk=(1, *patch) if configuration.spatial_dims == 2 else patch,
        annotated=None if annotated is None else [names.index(name) for name in annotated],
        ignore=None if plan.ignore_label is None else ignore_index(plan),
        nonzero_mask=case.nonzero_mask,
        affine=case.trail.grid.affine,
    )
