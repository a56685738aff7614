"""Datasets on disk: their description, their check, and reading them case by case."""

from medmamba.datasets.check import CheckedCase, DatasetReport, check_dataset
from medmamba.datasets.convert import Conversion, convert_dataset
from medmamba.datasets.load import LoadedCase, load_case
from medmamba.datasets.read import read_dataset, read_splits
from medmamba.datasets.spec import CaseSpec, DatasetSpec

__all__ = [
    "CaseSpec",
    "CheckedCase",
    "Conversion",
    "DatasetReport",
    "DatasetSpec",
    "LoadedCase",
    "check_dataset",
    "convert_dataset",
    "load_case",
    "read_dataset",
    "read_splits",
]
