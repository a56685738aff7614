"""The options of `medmamba serve`."""

from medmamba.inference.options import ModelOptions, PredictorOptions
from medmamba.options import DEVICE_TEXT, Names, option


class ServeOptions(ModelOptions):
    """The choices of :func:`medmamba.serving.app.run_service`."""

    host: str = option(
        "127.0.0.1", "Address to listen on. There is no authentication: do not expose it.", panel="Service"
    )
    port: int = option(8000, "Port; 0 takes a free one.", panel="Service", ge=0, le=65535)
    devices: Names = option(
        ("auto",),
        f"{DEVICE_TEXT.rstrip('.')}; repeat for several, each with its own queue.",
        panel="Service",
        flag="--device",
    )
    upload_mb: int = option(512, "Largest upload, in MB.", panel="Service", flag="--max-upload", ge=1)
    waiting: int = option(
        8, "Largest number of images that wait in the queue of a device.", panel="Service", flag="--max-waiting", ge=1
    )
    memory_limit_gib: float | None = option(
        None, "Largest memory in GiB of one image; others are refused.", panel="Service", flag="--max-memory", ge=0
    )

    def of_predictor(self, device: str) -> PredictorOptions:
        """The options of the predictor on one of the devices."""
        shared = {name: getattr(self, name) for name in (*ModelOptions.model_fields, "memory_limit_gib")}
        return PredictorOptions(device=device, **shared)
