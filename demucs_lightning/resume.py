"""Where a checkpoint says that training goes on.

Lightning stores its counters as they stand when a checkpoint is written, between two hooks, in
validation or in the middle of a step, and has a rule for each case. Here a checkpoint always says
one thing: so many steps are done, and the validation after them is done or is not.
"""

from typing import Any

Position = tuple[int, int]  # finished epochs, finished batches of the next one


def settle(checkpoint: dict[str, Any], position: Position, *, batches: int, validate: bool) -> None:
    """Set the counters of a Lightning ``checkpoint`` to ``position``, in place.

    ``batches`` are those of an epoch. With ``validate``, the validation due at ``position`` comes
    first.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    epoch, batch = position
    if validate and batch == 0:
        epoch, batch = epoch - 1, batches
    begun = epoch + (batch > 0)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    fit_loop["epoch_progress"].update(total=dict(epochs), current=dict(epochs))
    fit_loop["epoch_loop.batch_progress"].update(
        total=_all(epoch * batches + batch), current=_all(batch), is_last_batch=batch == batches
    )
    started = {"ready": int(validate), "started": int(validate), "processed": 0, "completed": 0}
    fit_loop["epoch_loop.val_loop.batch_progress"].update(
        total=started, current=_all(0), is_last_batch=False
    )


def _all(count: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), count)
