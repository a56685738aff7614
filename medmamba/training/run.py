"""`medmamba train`: a fold of a planned run, from stored cases to a model. Imports nothing heavy before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmamba.training.config import TrainConfig
    from medmamba.training.loss_names import LossFunction
    from medmamba.training.progress import StepReport, TrainingResult


def train(
    run: str | Path,
    *,
    fold: int | str = 0,
    configuration: str | None = None,
    network: str | None = None,
    use_scan: bool = True,
    config: TrainConfig | None = None,
    loss: LossFunction | None = None,
    resume: bool = False,
    restart: bool = False,
    init: str | Path | None = None,
    trackers: Sequence[str] = (),
    on_step: Callable[[StepReport], None] = lambda report: None,
    on_event: Callable[[str], None] = lambda line: None,
    on_start: Callable[[str], None] = lambda line: None,
) -> TrainingResult:
    """Train one fold (a number, or ``"all"`` for every case and no validation) of a planned run.

    Args:
        loss: a function of :class:`medmamba.training.losses.LossInputs`, in place of ``config.loss``; recorded by its
            name, module:function, and not by its code. To resume, a function of a script is given again.
        init: a trained fold, run or pretrained model whose weights are the start (output channels by label name, image
            channels by channel name), or published weights that ``medmamba convert weights`` has translated.
        trackers: further places for the metrics: "tensorboard", "mlflow", "wandb".
        on_event: called with lines a user should see: back-offs, advice, what an initialisation kept.
        on_start: called with one line: device, precision, scan backend.
    """
    from medmamba.training.fold import train_planned_fold
    from medmamba.training.options import TrainOptions

    options = TrainOptions.with_trackers(
        trackers,
        configuration=configuration,
        network=network,
        use_scan=use_scan,
        resume=resume,
        restart=restart,
        init=init,
    )
    return train_planned_fold(
        run, fold, options, config, loss=loss, on_step=on_step, on_event=on_event, on_start=on_start
    )
