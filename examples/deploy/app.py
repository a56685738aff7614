"""A MONAI Deploy application around a bundle of `medmamba export`: DICOM series in, DICOM SEG out.

    python app.py -i DICOM_FOLDER -o OUTPUT -m BUNDLE

BUNDLE is the folder of the bundle (or its models/model.ts). See README.md beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle_facts import BundleFacts
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator
from pydicom.sr.codedict import codes

SERIES: dict[str, Any] = {}
"""Further conditions of the series, such as {"SeriesDescription": "T1"}: DICOM attributes and regular expressions."""


class Volume(DICOMSeriesToVolumeOperator):
    """Stacks the slices of the selected series; of pixels that are no squares the SDK exchanges the two spacings."""

    def convert_to_image(self, study_selected_series_list: Any) -> Any:
        if not study_selected_series_list:
            raise ValueError("No series matches the conditions (modality, SERIES), or its files lack SeriesNumber.")
        return super().convert_to_image(study_selected_series_list)

    def prepare_series(self, series: Any) -> None:
        super().prepare_series(series)
        rows, columns = series.get_sop_instances()[0][0x0028, 0x0030].value
        if abs(rows - columns) > 1e-4 * rows:
            raise ValueError(f"Pixels of {rows} x {columns} mm: the SDK places such series wrongly. Resample them.")


class Segmentation(MonaiBundleInferenceOperator):
    """The bundle, whose label values become segment numbers."""

    facts: BundleFacts

    def post_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        done = super().post_process(data, *args, **kwargs)
        return {**done, "pred": torch.from_numpy(self.facts.segment_numbers(np.asarray(done["pred"])))}


class SegmentationApp(Application):
    """Load, select, stack, segment with the bundle, write the DICOM SEG."""

    def compose(self) -> None:
        context: AppContext = Application.init_app_context(self.argv)
        facts = BundleFacts(Path(context.model_path))
        context.models = None  # the SDK takes a folder for a model without weights; the operator finds them in it

        rules = {"selections": [{"name": "image", "conditions": {"Modality": f"^{facts.modality}$", **SERIES}}]}
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="loader"
        )
        selector = DICOMSeriesSelectorOperator(
            self, rules=json.dumps(rules), all_matched=True, sort_by_sop_instance_count=True, name="selector"
        )
        volume = Volume(self, name="volume")
        network = Segmentation(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=facts.folder,
            name="network",
        )
        network.facts = facts
        segments = [
            SegmentDescription(
                segment_label=name[:64],
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_name=facts.name[:64],
                algorithm_family=codes.DCM.ArtificialIntelligence,
                algorithm_version=facts.version,
            )
            for name in facts.labels
        ]
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments, output_folder=Path(context.output_path), name="writer"
        )

        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, network, {("image", "image")})
        self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(network, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    SegmentationApp().run()
