"""Masks as DICOM segmentation objects, beside the series they were made from. Needs the extra ``dicom``."""
