"""DICOM series written on the spot, one file per slice, with a name in them that must never be shown."""

from __future__ import annotations

import locale
from pathlib import Path

import numpy as np
import SimpleITK as sitk

IDENTITY = np.eye(3)


def write_slice(
    path: Path, pixels: np.ndarray, position, direction=IDENTITY, series: str = "1.2.3", **tags: str
) -> None:
    """One file: pixels (rows, columns), position of the first pixel in LPS mm, columns of ``direction`` its axes."""
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 0.75))
    texts = {
        "0008|0060": "MR",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
        "0010|0010": "PHI_CANARY",
        "0020|000d": "1.2",
        "0020|000e": series,
        "0008|0018": f"{series}.{abs(hash(path.name)) % 10**8}",
        "0020|0032": "\\".join(f"{x:.6f}" for x in position),
        "0020|0037": "\\".join(f"{x:.9f}" for x in direction[:, :2].T.ravel()),
        **{tag.replace("_", "|"): text for tag, text in tags.items()},
    }
    for tag, text in texts.items():
        image.SetMetaData(tag, text)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.SetFileName(str(path))
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves the C locale behind


def write_series(folder: Path, volume: np.ndarray, direction=IDENTITY, thickness: float = 2.0, **options) -> Path:
    """A volume (slices, rows, columns); file names do not follow the order of the slices."""
    for k, pixels in enumerate(volume):
        position = np.array([10.0, -20.0, 30.0]) + direction[:, 2] * k * thickness
        write_slice(folder / f"{(k * 7) % len(volume)}.dcm", pixels, position, direction, **options)
    return folder


def write_object(path: Path, sop_class: str, series: str = "1.2.99", **elements) -> Path:
    """A DICOM object of the last numbers of a SOP class, without pixels unless ``elements`` have them."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    found = pydicom.Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.{sop_class}"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = f"{series}.{len(path.name)}"
    found.SeriesInstanceUID, found.PatientName = series, "PHI_CANARY"
    for name, value in elements.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def changed(path: Path, **elements) -> Path:
    """A DICOM file with other values of some elements; None removes one."""
    import pydicom

    found = pydicom.dcmread(path)
    for name, value in elements.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    found.save_as(path)
    return path


def write_enhanced(
    path: Path, volume: np.ndarray, sop_class: str = "4.1", shared=(), syntax="ExplicitVRLittleEndian", **elements
) -> Path:
    """An enhanced multi-frame file of a volume (phases, slices, rows, columns) or (slices, rows, columns).

    Frames are stored phase by phase, each phase from the last slice to the first. Names in ``shared`` stand once, not
    in every frame; ``elements`` as of :func:`write_object`.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    def item(**values) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    phases = volume[None] if volume.ndim == 3 else volume
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.9"
    found.PatientName, found.Modality, found.SeriesNumber = "PHI_CANARY", "MR", 8
    found.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 16, 15
    found.PixelRepresentation = int(volume.dtype == np.int16)
    found.Rows, found.Columns = volume.shape[-2:]
    found.NumberOfFrames = len(phases) * volume.shape[-3]
    pointers = (0x00209128, 0x00209057)  # temporal position, position in the stack
    found.DimensionIndexSequence = [
        item(DimensionIndexPointer=tag, FunctionalGroupPointer=0x00209111, DimensionOrganizationUID="1.2.8")
        for tag in pointers
    ]
    frames, pixels = [], []
    for phase, one in enumerate(phases, start=1):
        for k in reversed(range(len(one))):
            groups = {
                "PixelMeasuresSequence": item(PixelSpacing=[0.75, 0.5], SliceThickness=2),
                "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
                "PixelValueTransformationSequence": item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US"),
                "PlanePositionSequence": item(ImagePositionPatient=[10, -20, 30 + 2 * k]),
                "FrameContentSequence": item(DimensionIndexValues=[phase, k + 1], TemporalPositionIndex=phase),
            }
            frames.append(item(**{name: [group] for name, group in groups.items() if name not in shared}))
            pixels.append(one[k])
    found.SharedFunctionalGroupsSequence = [item(**{name: [groups[name]] for name in shared})]
    found.PerFrameFunctionalGroupsSequence = frames
    found.PixelData = np.stack(pixels).astype(volume.dtype.newbyteorder(">" if "Big" in syntax else "<")).tobytes()
    for name, value in elements.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path
