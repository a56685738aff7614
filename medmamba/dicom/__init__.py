"""Masks as DICOM SEG and RTSTRUCT objects that refer to their series. Needs the extra ``dicom``."""
