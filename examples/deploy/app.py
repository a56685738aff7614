"""A MONAI Deploy application around a bundle of `medmamba export`: DICOM series in, DICOM SEG out.

    python app.py -i DICOM_FOLDER -o OUTPUT -m BUNDLE

Not run by the tests: the SDK (monai-deploy-app-sdk 4) needs holoscan, cupy and a CUDA device. They compile this file
and check that the names it takes from the bundle are there. The bundle may be given as a folder: the operator finds
models/model.ts, or the network of configs/inference.json with models/model.pt.
"""

from __future__ import annotations

import json
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import (
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
)
from pydicom.sr.codedict import codes

RULES = '{"selections": [{"name": "MR", "conditions": {"Modality": "MR"}}]}'


class SegmentationApp(Application):
    """Load, select, stack, segment with the bundle, write the DICOM SEG."""

    def compose(self) -> None:
        context: AppContext = Application.init_app_context(self.argv)
        bundle, output = Path(context.model_path), Path(context.output_path)
        classes = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
        names = [name for index, name in sorted(classes["pred"]["channel_def"].items()) if index != "0"]

        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="loader"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=RULES, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        network = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_config_names=BundleConfigNames(config_names=["inference"]),
            bundle_path=bundle,
            name="network",
        )
        segments = [
            SegmentDescription(
                segment_label=name,
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_name="medmamba",
                algorithm_family=codes.DCM.ArtificialIntelligence,
                algorithm_version="0.1.0",
            )
            for name in names
        ]
        writer = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments, output_folder=output, name="writer"
        )

        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(volume, network, {("image", "image")})
        self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(network, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    SegmentationApp().run()
