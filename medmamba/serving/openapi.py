"""What /openapi.json says about bodies and answers, which the code does not: bodies are read as they come."""

from typing import Any

from medmamba.serving.upload import ACCEPTED, FIELD

_FILE = {"type": "string", "format": "binary"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "One line: what is wrong, and what to do."},
        "series": {
            "type": "array",
            "description": "The series of a study, when one must be chosen with the parameter series.",
            "items": {
                "type": "object",
                "properties": {
                    **{name: {"type": "string"} for name in ("number", "uid", "modality", "description")},
                    **{name: {"type": "integer"} for name in ("images", "rows", "columns")},
                    "parts": {"type": "array", "items": {"type": "integer"}, "description": "Images of each part."},
                },
            },
        },
    },
}

BODY: dict[str, Any] = {
    "required": True,
    "description": f"One image ({', '.join(ACCEPTED)}). A zip holds one DICOM series, a study of which one series is "
    "chosen, or one file per channel.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {
                        "type": "array",
                        "items": _FILE,
                        "description": "The image, or one file per channel in the order of /info.",
                    }
                },
            }
        },
        "application/octet-stream": {"schema": _FILE},
        "application/zip": {"schema": _FILE},
    },
}
"""The request body of /predict."""

_REFUSED = {
    400: "Empty or damaged body, or a wrong parameter.",
    408: "The upload stalled.",
    413: "The upload is too large, or its prediction needs too much memory.",
    415: "Unknown file format, or a Content-Encoding.",
    422: "The image cannot be used, or a series must be chosen.",
    501: "DICOM cannot be written here.",
    503: "Too many requests, or the service is being stopped; see Retry-After.",
    507: "No room on the temporary disk.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What was asked for: a zip of mask and report.json, the mask, or the report.",
        "content": {
            **{
                kind: {"schema": _FILE} for kind in ("application/zip", "application/octet-stream", "application/dicom")
            },
            "application/json": {"schema": {"type": "object", "description": "Status, findings, volumes, provenance."}},
        },
    },
    **{
        code: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for code, text in _REFUSED.items()
    },
}
"""The answers of /predict."""
