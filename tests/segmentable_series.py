"""A series with everything that DICOM SEG and RTSTRUCT refer to, and a mask of two labels for it."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np

VALUES = {"background": 0, "anterior": 1, "posterior": 7}
AXES = {
    "axial": np.eye(3),
    "oblique": np.array([[0.96, -0.28, 0.0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.28 * 0.6, 0.96 * 0.6, 0.8]]).T,
}


def write_source_series(folder, axes, count=12, **elements):
    """Slices of 20 rows and 16 columns, in files whose names are not in the order of space."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    rng = np.random.default_rng(1)
    for n in range(count):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = MRImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.PatientID, slice_.PatientName, slice_.PatientBirthDate, slice_.PatientSex = "x", "A^B", "", ""
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.StudyDate, slice_.StudyTime, slice_.AccessionNumber, slice_.StudyID = "20260101", "120000", "", ""
        slice_.ReferringPhysicianName, slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "", "MR", 4, n + 1
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 20, 16, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelSpacing, slice_.SliceThickness = [0.75, 0.5], 2.0
        slice_.ImageOrientationPatient = [float(v) for v in (*axes[0], *axes[1])]
        normal = np.cross(axes[0], axes[1])
        slice_.ImagePositionPatient = [round(float(v), 6) for v in 2.0 * n * normal + [10, -20, 30]]
        slice_.PixelData = rng.integers(0, 1000, (20, 16), dtype=np.uint16).tobytes()
        for name, value in elements.items():
            setattr(slice_, name, value)
        slice_.save_as(folder / f"{(n * 5) % 12}.dcm", enforce_file_format=True)
    return folder, study, frame


def mask_of_two(shape):
    """Two blocks, of values 1 and 7."""
    labels = np.zeros(shape, dtype=np.int64)
    labels[3:7, 4:9, 2:6] = 1
    labels[8:12, 2:5, 4:8] = 7
    return labels


def valid(path):
    """Whether dciodvfy (dicom3tools) finds no error in a DICOM file; True where it is not installed."""
    if shutil.which("dciodvfy") is None:
        return True
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    assert "Error" not in said.stderr, said.stderr
    return True
