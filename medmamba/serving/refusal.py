"""Answers of 4xx and 5xx: a status and a reason that a client can act on, without paths or options of the server."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmamba.compute.device import is_out_of_memory
from medmamba.errors import MedmambaError, ResourceError
from medmamba.images.gate import brief, shown
from medmamba.serving.queues import Busy

RETRY_SECONDS = 10
_SENTENCE = re.compile(r"(?<=[.?]) (?=[A-Z])")
_LOCAL = re.compile(
    r"--\w|`|\b(max_voxels|nonfinite|memory_limit_gib|any_spacing|match_labels|Python)\b|[Ff]older|[Dd]isk"
    r"|Close other programs|Allow more memory|Check the path|Give all channels|Copy it again"
)
"""Advice that only somebody at the machine of the service can follow."""
_CURE = "Correct the image and send it again."


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is not answered with a mask.

    Attributes:
        code: HTTP status; 503 is sent with Retry-After.
        reason: one line for the client.
        facts: further entries of the JSON answer, such as the list of series.
    """

    code: int
    reason: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        return {"error": self.reason, **self.facts}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {"Retry-After": str(RETRY_SECONDS)} if self.code == 503 else {}


def stopping() -> Refusal:
    """The answer to every request that a stopping service cannot finish."""
    return Refusal(503, "the service is being stopped. Send the image again later.")


def refusal_of(error: Exception, folder: Path) -> Refusal | None:
    """The answer for an error of a prediction whose files lie in ``folder``; None for one that is no client's fault."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Busy):
        return Refusal(503, str(error))
    if isinstance(error, ResourceError | OSError) and (
        isinstance(error, OSError) or isinstance(error.__cause__ or error.__context__, OSError)
    ):
        return Refusal(507, "the service has no room on its temporary disk. Send the image again later.")
    if isinstance(error, ResourceError):
        return Refusal(413, for_client(str(error), folder, "Send a smaller image."))
    if is_out_of_memory(error):
        return Refusal(413, "out of memory. Send a smaller image.")
    if isinstance(error, MedmambaError | FloatingPointError):
        return Refusal(422, for_client(str(error), folder))
    return None


def for_client(text: str, folder: Path, cure: str = _CURE) -> str:
    """A message for somebody who has neither the files nor the command line of the service."""
    for path in sorted({str(folder), str(folder.resolve())}, key=len, reverse=True):
        text = text.replace(f"{path}/", "").replace(path, "the request")
    first, *others = _SENTENCE.split(shown(" ".join(text.split())))
    kept = [sentence for sentence in others if not _LOCAL.search(sentence)]
    return " ".join([first, *kept, *([cure] if len(kept) < len(others) else [])])


def choice_of_series(sentences: Sequence[str], facts: Sequence[dict[str, Any]], asked: str | None) -> Refusal:
    """The answer for a study of several series or parts, or one without the series that was asked for."""
    wrong = "" if asked is None else f"no series {brief(asked)!r} in it: "
    listed = f"the zip holds {wrong}{len(sentences)} series ({'; '.join(sentences)})"
    how = (
        "Choose one with series=NUMBER or the end of its UID, a part of it with series=NUMBER:PART, or series=largest."
    )
    return Refusal(422, f"{listed}. {how}", {"series": list(facts)})
