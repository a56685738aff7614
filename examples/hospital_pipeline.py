"""DICOM in, DICOM SEG out: every study that arrives in a folder is segmented once, and none is lost.

    python examples/hospital_pipeline.py MODEL INBOX OUTBOX [--codes labels.json] [--once]

INBOX holds one folder or zip per study. For each, OUTBOX/<name>/ gets seg.dcm, mask.nii.gz, report.json and
report.html; what needs a person's eye has "status": "review" and the reasons. A series that can have no DICOM SEG keeps
its mask, and the reports say why under "not_written". A study that cannot be used leaves failed.json with the reason.
Results are written beside their place and renamed, so that none is seen half; what is there is not done again.
Names of patients appear nowhere but inside the DICOM objects.

Research use only: whoever puts this in front of patients is responsible for validation and approval.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import medmamba
from medmamba.dicom.study import opened
from medmamba.disk.atomic import replace_folder, write_json
from medmamba.errors import InputError, MedmambaError


def segment(predictor: medmamba.Predictor, study: Path, target: Path, codes: Path | None, series: str | None) -> str:
    """Segment one study into the folder ``target``; returns what became of it."""
    try:
        with opened(study, series) as folder, replace_folder(target) as part:
            result = predictor.predict(folder)
            result.save(part / "mask.nii.gz")
            not_written = {}
            try:
                result.save_dicom_seg(part / "seg.dcm", codes=codes)
            except InputError as error:  # the mask stays
                not_written["dicom_seg"] = str(error).replace(str(folder), "the series")
            result.save_report(part / "report.html", not_written=not_written)
            result.save_report(part / "report.json", not_written=not_written)
            return result.status
    except (MedmambaError, FloatingPointError, MemoryError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        with replace_folder(target) as part:
            write_json(part / "failed.json", {"reason": reason.replace(str(study), study.name)})
        return "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="run folder, trained fold or bundle")
    parser.add_argument("inbox", type=Path)
    parser.add_argument("outbox", type=Path)
    parser.add_argument("--codes", type=Path, help="labels.json with code and colour of each label")
    parser.add_argument("--series", help="number of the series to take, where a study holds several")
    parser.add_argument("--once", action="store_true", help="end when the inbox is done")
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    with medmamba.Predictor(options.model, fast=options.fast) as predictor:
        while True:
            for study in sorted(path for path in options.inbox.iterdir() if not path.name.startswith(".")):
                target = options.outbox / study.name.removesuffix(".zip")
                if not target.exists():
                    status = segment(predictor, study, target, options.codes, options.series)
                    print(f"{target.name}: {status}", flush=True)
            if options.once:
                return
            time.sleep(5)


if __name__ == "__main__":
    main()
