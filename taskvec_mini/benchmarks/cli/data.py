"""`data`: the tasks of the recorded studies, made anew from public sources."""

from __future__ import annotations

from taskvec_mini import scores
from taskvec_mini.benchmarks.cli.requests import DataRequest
from taskvec_mini.benchmarks.data import DATA_VARIABLE, obtain


def data(request: DataRequest) -> dict[str, str | None]:
    """Fetch, cut and check the files of some tasks, or show what there is.

    Returns:
        By the name of each task, what its files are; see `obtain.state`.

    Raises:
        UserError: if a name is unknown, a source cannot be reached or is not what it was, or the disk is too
            small.
    """
    offers = obtain.chosen_offers(request.tasks)
    if request.list:
        found = {name: obtain.state(name, request.out) for name in offers}
        rows: list[dict[str, object]] = [
            {
                "task": name,
                "suites": ", ".join(offer.suites),
                "from": f"github.com/{offer.repository} at {offer.commit[:8]}",
                "download MB": f"about {offer.megabytes:,}",
                "licence": offer.licence,
                "": found[name] or "not there",
            }
            for name, offer in offers.items()
        ]
        print(scores.table(rows))
        return found
    found = dict(obtain.obtain(request.tasks, request.out, address=request.address, keep=request.keep))
    print(scores.table([{"task": name, "files": state} for name, state in found.items()]))
    print(
        f"the data are in {request.out}: give the commands --data {request.out}, or set the environment "
        f"variable {DATA_VARIABLE} to it; `data --list` says what is known of the licences"
    )
    return found
